-- The requests of one operation, for wrk:
--   wrk … -s workload.lua URL -- <operation> <users> <tasks> <first id to delete>
-- Task 1 belongs to user u1, task 2 to u2, and so on, starting again at u1 after the last user.
local operation, users, tasks, to_delete

local method = { list = "GET", get = "GET", create = "POST", update = "PUT", complete = "PATCH", delete = "DELETE" }
local body = {
  create = '{"title": "Buy milk", "description": "Two litres, and the good bread from the market"}',
  update = '{"title": "Buy oat milk", "description": "Three litres"}',
}

function init(arguments)
  operation, users, tasks, to_delete = arguments[1], tonumber(arguments[2]), tonumber(arguments[3]), tonumber(arguments[4])
  math.randomseed(os.time())
end

local function request_to(user, rest)
  local headers = { Authorization = "Bearer " .. user }
  if body[operation] then headers["Content-Type"] = "application/json" end
  return wrk.format(method[operation], "/api/" .. user .. "/tasks" .. rest, headers, body[operation])
end

function request()
  if operation == "list" then return request_to("u" .. math.random(users), "") end
  if operation == "create" then return request_to("c" .. math.random(users), "") end
  if operation == "delete" then
    to_delete = to_delete + 1
    return request_to("d", string.format("/%d", to_delete - 1))
  end
  local task = math.random(tasks)
  local rest = string.format("/%d", task) .. (operation == "complete" and "/complete" or "")
  return request_to("u" .. ((task - 1) % users + 1), rest)
end

-- wrk reports microseconds.
function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"requests": %d, "microseconds": %d, "p50": %d, "p99": %d, "failures": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
