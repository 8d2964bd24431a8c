import createClient from "openapi-fetch";
import type { components, paths } from "./generated/openapi-typescript.d.ts";
import { type Answer, run, TODO_API, TOKEN, USER_ID } from "./scenario.ts";

const todo = createClient<paths>({ baseUrl: TODO_API, headers: { Authorization: `Bearer ${TOKEN}` } });
const tasks = "/api/{user_id}/tasks";
const task = "/api/{user_id}/tasks/{id}";
const path = { user_id: USER_ID };

function answer<Data>({ data, response }: { data?: Data; response: Response }): Answer<Data> {
  return { status: response.status, headers: response.headers, data };
}

await run({
  list: async (query) => answer(await todo.GET(tasks, { params: { path, query } })),
  create: async (body) => answer(await todo.POST(tasks, { params: { path }, body })),
  get: async (id, etag) =>
    answer(await todo.GET(task, { params: { path: { ...path, id }, header: { "If-None-Match": etag } } })),
  update: async (id, body, etag) =>
    answer(await todo.PUT(task, { params: { path: { ...path, id }, header: { "If-Match": etag } }, body })),
  complete: async (id) => answer(await todo.PATCH(`${task}/complete`, { params: { path: { ...path, id } } })),
  delete: async (id) => answer(await todo.DELETE(task, { params: { path: { ...path, id } } })),
});

// One object with its fields, not a union or a dictionary.
const update: components["schemas"]["TaskUpdate"] = { title: "x", description: null, status: "complete" };
// @ts-expect-error
update.priority = 1;
