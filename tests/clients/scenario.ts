// What each generated client is asked to do; it prints one line a step, for the test to compare.
export const { TODO_API = "", USER_ID = "", TOKEN = "" } = process.env;

export interface Task {
  id: number;
  title: string;
  description: string | null;
  status: "incomplete" | "complete";
}

export interface Answer<Data = Task> {
  status: number;
  headers: Headers;
  data: Data | undefined;
}

export interface Client {
  list(query: { limit?: number; cursor?: string; status?: "incomplete" | "complete" }): Promise<Answer<Task[]>>;
  create(body: { title: string; description?: string | null }): Promise<Answer>;
  get(id: number, ifNoneMatch: string): Promise<Answer>;
  update(id: number, body: { title?: string; description?: string | null }, ifMatch: string): Promise<Answer>;
  complete(id: number): Promise<Answer>;
  delete(id: number): Promise<Answer<unknown>>;
}

function found<Data>({ data, status }: Answer<Data>): Data {
  if (data === undefined) throw new Error(`no data with ${status}`);
  return data;
}

export async function run(client: Client): Promise<void> {
  const created = await client.create({ title: "Buy milk" });
  const { id, title } = found(created);
  const etag = created.headers.get("ETag") ?? "";
  console.log("created", created.status, title);

  await client.create({ title: "Water the plants", description: null });
  const first = await client.list({ limit: 1 });
  const link = first.headers.get("Link")?.match(/<([^>]*)>/)?.[1] ?? "";
  const cursor = new URL(link, TODO_API).searchParams.get("cursor") ?? "";
  const second = await client.list({ limit: 1, cursor });
  console.log("paged", [...found(first), ...found(second)].map((task) => task.title).join(", "));

  console.log("unchanged", (await client.get(id, etag)).status);
  const updated = await client.update(id, { description: "Two litres" }, etag);
  console.log("updated", updated.status, found(updated).description);
  console.log("refused", (await client.update(id, { title: "Buy oat milk" }, etag)).status);
  console.log("completed", found(await client.complete(id)).status);
  console.log("listed", found(await client.list({ status: "complete" })).map((task) => task.id === id).join());
  console.log("deleted", (await client.delete(id)).status);
  console.log("gone", (await client.get(id, "*")).status);
}
