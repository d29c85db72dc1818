// Opens a report in a headless browser, at the width of a phone and of a screen, light and dark.
//
//   node scripts/check_report.mjs runs/NAME/report.html [FOLDER_FOR_SCREENSHOTS]
//
// Needs `npm install playwright-core` and a Chromium: CHROMIUM=path, or `npm install
// @sparticuz/chromium`. Fails if the console has an error, something is fetched, a plot has no marks,
// the page is wider than the screen, text is smaller than 10 pixels, or slider and choices do nothing.
import { existsSync, mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const [file, folder] = process.argv.slice(2);
if (!file || !existsSync(file)) {
  console.error("usage: node scripts/check_report.mjs REPORT.html [FOLDER]");
  process.exit(2);
}
// Packages are looked for where the command is run, not beside this file.
const require = createRequire(join(process.cwd(), "package.json"));
const load = async (name) => import(pathToFileURL(require.resolve(name)));
const { chromium } = (await load("playwright-core")).default;
const executablePath =
  process.env.CHROMIUM ?? (await (await load("@sparticuz/chromium")).default.executablePath());
if (folder) mkdirSync(folder, { recursive: true });

const problems = [];
const url = pathToFileURL(resolve(file)).href;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox", "--disable-gpu"] });

/** What can be seen wrong in the page as it is. */
function faults() {
  const found = [];
  if (document.documentElement.scrollWidth > window.innerWidth) {
    found.push(`the page is ${document.documentElement.scrollWidth} pixels wide`);
  }
  const figures = document.querySelectorAll("figure");
  if (figures.length === 0) found.push("there is no plot");
  for (const figure of figures) {
    const title = figure.querySelector("h3")?.textContent;
    const drawing = figure.querySelector("svg[role=img]");
    const marks = drawing?.querySelectorAll("polyline, circle, rect, g:not(.axes) > path") ?? [];
    if (!title || marks.length === 0) found.push(`plot ${title}: nothing is drawn`);
    if (!figure.querySelector("details table tbody tr")) found.push(`plot ${title}: no numbers`);
    const box = drawing?.getBoundingClientRect();
    for (const text of box?.width ? drawing.querySelectorAll("text") : []) {
      const size = parseFloat(getComputedStyle(text).fontSize) * (box.width / 400);
      if (size < 10) found.push(`plot ${title}: text of ${size.toFixed(1)} pixels`);
    }
  }
  return [...new Set(found)];
}

for (const colorScheme of ["light", "dark"]) {
  for (const width of [390, 1440]) {
    const where = `${colorScheme}, ${width} px`;
    const say = (text) => problems.push(`${where}: ${text}`);
    const page = await browser.newPage({ viewport: { width, height: 900 }, colorScheme });
    page.on("console", (message) => message.type() === "error" && say(message.text()));
    page.on("pageerror", (error) => say(String(error)));
    page.on("request", (request) => request.url() === url || say(`fetches ${request.url()}`));
    await page.goto(url);
    (await page.evaluate(faults)).forEach(say);
    if (folder) {
      const path = join(folder, `report-${colorScheme}-${width}.png`);
      await page.screenshot({ path, fullPage: true });
    }
    for (const map of await page.$$("[data-frames]")) {
      const state = () =>
        map.evaluate((m) => [
          m.querySelector("output").textContent,
          [...m.querySelectorAll("rect.cell")].map((cell) => cell.getAttribute("class")).join(),
        ]);
      const slider = await map.$("input");
      if ((await slider.getAttribute("max")) === "0") continue;
      const before = await state();
      if (await slider.isVisible()) {
        await slider.focus();
        await page.keyboard.press("Home");
      } else {
        // In a panel that is not shown.
        await slider.evaluate((s) => {
          s.value = "0";
          s.dispatchEvent(new Event("input"));
        });
      }
      const after = await state();
      if (before[0] === after[0]) say("the slider does not change the step");
      if (before[1] === after[1]) say("the slider does not change the colours");
    }
    for (const tabs of await page.$$("[data-tabs]")) {
      const shown = () =>
        tabs.evaluate((t) => [...t.children].filter((c) => c.matches(".panel") && !c.hidden).length);
      if ((await shown()) !== 1) say(`${await shown()} panels are shown at once`);
      const select = await tabs.$(":scope > label > select");
      const last = await select.evaluate((s) => s.options[s.options.length - 1].value);
      await select.evaluate((s, value) => {
        s.value = value;
        s.dispatchEvent(new Event("change"));
      }, last);
      const visible = await tabs.evaluate((t, value) => !t.querySelectorAll(":scope > .panel")[value].hidden, last);
      if (!visible) say("the choice shows another panel");
    }
    await page.close();
  }
}
await browser.close();
for (const problem of problems) console.error(problem);
console.log(problems.length === 0 ? "the report is fine" : `${problems.length} problems`);
process.exit(problems.length === 0 ? 0 : 1);
