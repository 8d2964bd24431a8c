// A client of the Todo API, typed by openapi.json: it renews the token, follows the pages and guards its changes.
import createClient from "openapi-fetch";
import type { components, paths } from "./todo-api.d.ts";

type Task = components["schemas"]["TaskPublic"];
type TaskUpdate = components["schemas"]["TaskUpdate"];
type Todo = ReturnType<typeof createTodo>;

// `newToken` is called for the first request, and once for each request that is answered 401, which is then sent again.
export function createTodo(baseUrl: string, newToken: () => Promise<string>) {
  let token: string | undefined;
  return createClient<paths>({
    baseUrl,
    async fetch(request) {
      const send = (attempt: Request) => {
        attempt.headers.set("Authorization", `Bearer ${token}`);
        return fetch(attempt);
      };
      token ??= await newToken();
      const response = await send(request.clone());
      if (response.status !== 401) return response;
      token = await newToken();
      return send(request);
    },
  });
}

// All tasks, whatever their number.
export async function* allTasks(todo: Todo, user_id: string, limit = 100): AsyncGenerator<Task> {
  let query: { limit: number; cursor?: string } = { limit };
  for (;;) {
    const { data, error, response } = await todo.GET("/api/{user_id}/tasks", { params: { path: { user_id }, query } });
    if (!data) throw new Error(error.error);
    yield* data;
    const next = response.headers.get("Link")?.match(/<([^>]*)>/)?.[1];
    if (!next) return;
    query = { limit, cursor: new URL(next, response.url).searchParams.get("cursor") ?? "" };
  }
}

// Changes the version of the task that `edit` has seen; if another change came first, once more, from the newer version.
export async function changeTask(todo: Todo, path: { user_id: string; id: number }, edit: (task: Task) => TaskUpdate) {
  for (let tries = 2; ; tries--) {
    const found = await todo.GET("/api/{user_id}/tasks/{id}", { params: { path } });
    if (!found.data) throw new Error(found.error.error);
    const params = { path, header: { "If-Match": found.response.headers.get("ETag") ?? "" } };
    const changed = await todo.PUT("/api/{user_id}/tasks/{id}", { params, body: edit(found.data) });
    if (changed.data) return changed.data;
    if (changed.response.status !== 412 || tries === 1) throw new Error(changed.error.error);
  }
}
