export default {
  client: { input: "openapi.json", output: { target: "generated/orval/todo.ts", client: "fetch" } },
  schemas: { input: "openapi.json", output: { target: "generated/orval/zod.ts", client: "zod" } },
};
