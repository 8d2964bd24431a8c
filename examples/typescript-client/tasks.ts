// A task, from creating it to deleting it, with every request and every answer typed by openapi.json.
import createClient from "openapi-fetch";
import type { paths } from "./todo-api.d.ts";

const { TODO_API = "http://127.0.0.1:8000", USER_ID: user_id = "", TOKEN = "" } = process.env;
const todo = createClient<paths>({ baseUrl: TODO_API, headers: { Authorization: `Bearer ${TOKEN}` } });

const { data: task, error } = await todo.POST("/api/{user_id}/tasks", {
  params: { path: { user_id } },
  body: { title: "Buy milk" },
});
if (!task) throw new Error(error.error);

const params = { path: { user_id, id: task.id } };
const updated = await todo.PUT("/api/{user_id}/tasks/{id}", { params, body: { description: "Two litres" } });
const completed = await todo.PATCH("/api/{user_id}/tasks/{id}/complete", { params });
const listed = await todo.GET("/api/{user_id}/tasks", { params: { path: { user_id }, query: { status: "complete" } } });
const deleted = await todo.DELETE("/api/{user_id}/tasks/{id}", { params });
const gone = await todo.GET("/api/{user_id}/tasks/{id}", { params });

console.log("created", task.title);
console.log("updated", updated.data?.description);
console.log("completed", completed.data?.status);
console.log("listed", listed.data?.map(({ id }) => id).includes(task.id));
console.log("deleted", deleted.response.status);
console.log("gone", gone.error?.error);
