// A Better Auth server with nothing around it: migrates its tables, then listens at BETTER_AUTH_URL.
import { createServer } from "node:http";
import { getMigrations } from "better-auth/db/migration";
import { toNodeHandler } from "better-auth/node";
import { auth } from "./auth.ts";

const { toBeAdded, toBeCreated, runMigrations } = await getMigrations(auth.options);
await runMigrations();
console.log("made", toBeCreated.map(({ table }) => table).join(", ") || "no table");
console.log("extended", toBeAdded.map(({ table }) => table).join(", ") || "no table");

const { baseURL } = await auth.$context;
const { hostname, port } = new URL(baseURL);
createServer(toNodeHandler(auth)).listen(Number(port), hostname, () => console.log("Better Auth listens on", baseURL));
