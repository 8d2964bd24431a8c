// All six operations, with every request and every response typed by openapi.json.
import { allTasks, changeTask, createTodo } from "./client.ts";

const { TODO_API = "http://127.0.0.1:8000", USER_ID: user_id = "", TOKEN = "" } = process.env;
// In a front end with Better Auth: (await authClient.token()).data?.token
const todo = createTodo(TODO_API, async () => TOKEN);

const { data: task, error } = await todo.POST("/api/{user_id}/tasks", {
  params: { path: { user_id } },
  body: { title: "Buy milk" },
});
if (!task) throw new Error(error.error);

const path = { user_id, id: task.id };
const updated = await changeTask(todo, path, ({ title }) => ({ description: `${title}: two litres` }));
const completed = await todo.PATCH("/api/{user_id}/tasks/{id}/complete", { params: { path } });
const listed = await Array.fromAsync(allTasks(todo, user_id));
const deleted = await todo.DELETE("/api/{user_id}/tasks/{id}", { params: { path } });
const gone = await todo.GET("/api/{user_id}/tasks/{id}", { params: { path } });

console.log("created", task.title);
console.log("updated", updated.description);
console.log("completed", completed.data?.status);
console.log("listed", listed.map(({ id }) => id).includes(task.id));
console.log("deleted", deleted.response.status);
console.log("gone", gone.error?.error);
