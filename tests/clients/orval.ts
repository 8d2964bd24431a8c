import * as todo from "./generated/orval/todo.ts";
import { CreateTaskResponse } from "./generated/orval/zod.ts";
import { type Answer, run, TODO_API, TOKEN, USER_ID } from "./scenario.ts";

const send = globalThis.fetch;
globalThis.fetch = (path, { headers, ...options } = {}) => {
  const url = new URL(String(path), TODO_API);
  return send(url, { ...options, headers: { ...Object(headers), Authorization: `Bearer ${TOKEN}` } });
};

// The type of what an operation answers, when it answers with this code.
type Data<Response, Status> = Extract<Response, { status: Status }> extends { data: infer Found } ? Found : never;

function answer<Response extends { status: number; headers: Headers; data: unknown }>(
  { status, headers, data }: Response,
): Answer<Data<Response, 200 | 201 | 204>> {
  return { status, headers, data: status < 300 ? (data as Data<Response, 200 | 201 | 204>) : undefined };
}

await run({
  list: async (query) => answer(await todo.listTasks(USER_ID, query)),
  create: async (body) => {
    const created = answer(await todo.createTask(USER_ID, body));
    CreateTaskResponse.parse(created.data);
    return created;
  },
  get: async (id, etag) => answer(await todo.getTask(USER_ID, id, { headers: { "If-None-Match": etag } })),
  update: async (id, body, etag) => answer(await todo.updateTask(USER_ID, id, body, { headers: { "If-Match": etag } })),
  complete: async (id) => answer(await todo.completeTask(USER_ID, id)),
  delete: async (id) => answer(await todo.deleteTask(USER_ID, id)),
});

const update: todo.TaskUpdate = { title: "x", description: null, status: todo.TaskStatus.complete };
// @ts-expect-error
update.priority = 1;
