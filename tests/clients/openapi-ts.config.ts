export default {
  input: "openapi.json",
  output: { path: "generated/hey-api", importFileExtension: ".ts" },
  plugins: ["@hey-api/client-fetch", "@hey-api/sdk", "zod", "@tanstack/react-query"],
};
