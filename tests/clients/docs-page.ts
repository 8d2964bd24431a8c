// Does on the documentation page what a reader would do first, at the width of a phone; prints a line for each step.
import { chromium } from "playwright-core";

const { TODO_API = "", CHROMIUM = "", SCREENSHOT = "docs.png" } = process.env;
const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 390, height: 844 } });
page.setDefaultTimeout(60_000);
page.on("console", (message) => message.type() === "error" && console.log("console error:", message.text()));
page.on("pageerror", (error) => console.log("error:", error.message));

await page.goto(`${TODO_API}/docs`);
await page.locator("button.authorize").first().click();
await page.locator(".auth-container input").fill("alice");
await page.locator(".auth-btn-wrapper button[type=submit]").click();
await page.locator(".auth-btn-wrapper button.btn-done").click();

// Each as it is filled in; creating twice makes two tasks.
for (const name of ["createTask", "createTask", "listTasks", "updateTask", "getTask", "completeTask", "deleteTask"]) {
  const operation = page.locator(`#operations-tasks-${name}`);
  if (!(await operation.locator("button.execute").count())) {
    await operation.locator(".opblock-summary-control").click();
    await operation.locator("button.try-out__btn").click();
  }
  const received = page.waitForResponse((response) => response.url().includes("/api/alice/tasks"));
  await operation.locator("button.execute").click();
  const response = await received;
  await operation.locator(".live-responses-table").waitFor();
  const { length, description = "" } = response.status() === 204 ? {} : await response.json();
  console.log(name, response.status(), length ?? description);
}

console.log("too wide by", await page.evaluate("document.documentElement.scrollWidth - innerWidth"));
await page.screenshot({ path: SCREENSHOT, fullPage: true });
await browser.close();
