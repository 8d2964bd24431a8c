import { createClient } from "./generated/hey-api/client/index.ts";
import * as todo from "./generated/hey-api/sdk.gen.ts";
import type { TaskUpdate } from "./generated/hey-api/types.gen.ts";
import { zTaskPublic } from "./generated/hey-api/zod.gen.ts";
import { type Answer, run, TODO_API, TOKEN, USER_ID } from "./scenario.ts";

const client = createClient({ baseUrl: TODO_API, auth: TOKEN });
const path = { user_id: USER_ID };

function answer<Data>({ data, response }: { data: Data; response?: Response }): Answer<NonNullable<Data>> {
  if (!response) throw new Error("no response");
  return { status: response.status, headers: response.headers, data: data ?? undefined };
}

await run({
  list: async (query) => answer(await todo.listTasks({ client, path, query })),
  create: async (body) => {
    const created = answer(await todo.createTask({ client, path, body }));
    zTaskPublic.parse(created.data);
    return created;
  },
  get: async (id, etag) =>
    answer(await todo.getTask({ client, path: { ...path, id }, headers: { "If-None-Match": etag } })),
  update: async (id, body, etag) =>
    answer(await todo.updateTask({ client, path: { ...path, id }, body, headers: { "If-Match": etag } })),
  complete: async (id) => answer(await todo.completeTask({ client, path: { ...path, id } })),
  delete: async (id) => answer(await todo.deleteTask({ client, path: { ...path, id } })),
});

const update: TaskUpdate = { title: "x", description: null, status: "complete" };
// @ts-expect-error
update.priority = 1;
