import { MutationObserver, QueryClient } from "@tanstack/react-query";
import * as todo from "./generated/hey-api/@tanstack/react-query.gen.ts";
import { createClient } from "./generated/hey-api/client/index.ts";
import { run, TODO_API, TOKEN, USER_ID } from "./scenario.ts";

// The hooks give the data alone; what else the scenario looks at is noted here.
let last = new Response();
const client = createClient({ baseUrl: TODO_API, auth: TOKEN });
client.interceptors.response.use((response) => (last = response));
const queries = new QueryClient({ defaultOptions: { queries: { retry: false, gcTime: 0 } } });
const path = { user_id: USER_ID };

async function answer<Data>(asked: Promise<Data>) {
  const data = await asked.catch(() => undefined);
  return { status: last.status, headers: last.headers, data };
}

await run({
  list: (query) => answer(queries.fetchQuery(todo.listTasksOptions({ client, path, query }))),
  create: (body) => answer(new MutationObserver(queries, todo.createTaskMutation()).mutate({ client, path, body })),
  get: (id, etag) =>
    answer(
      queries.fetchQuery(todo.getTaskOptions({ client, path: { ...path, id }, headers: { "If-None-Match": etag } })),
    ),
  update: (id, body, etag) =>
    answer(
      new MutationObserver(queries, todo.updateTaskMutation()).mutate({
        client,
        path: { ...path, id },
        body,
        headers: { "If-Match": etag },
      }),
    ),
  complete: (id) =>
    answer(new MutationObserver(queries, todo.completeTaskMutation()).mutate({ client, path: { ...path, id } })),
  delete: (id) =>
    answer(new MutationObserver(queries, todo.deleteTaskMutation()).mutate({ client, path: { ...path, id } })),
});
