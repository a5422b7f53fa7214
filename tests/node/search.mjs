// Search a site that Sphinx has built, with the script of its own search page.
// Usage: node search.mjs FOLDER < questions (JSON); prints the names of the pages found, best first.
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { runInNewContext } from "node:vm";

const folder = process.argv[2];
const scripts = ["language_data.js", "searchtools.js"].map((name) =>
  readFileSync(join(folder, "_static", name), "utf8"));
scripts.push(readFileSync(join(folder, "searchindex.js"), "utf8"));
scripts.push(`
  questions.map((question) => {
    const results = Search._performSearch(...Search._parseQuery(question));
    return [...new Set(results.reverse().map(([page]) => page))];
  })`);
const context = {
  questions: JSON.parse(readFileSync(0, "utf8")),
  DOCUMENTATION_OPTIONS: {},
  SPHINX_HIGHLIGHT_ENABLED: false,
  _: (text) => text,
  _ready: () => {},
  document: { getElementById: () => null },
};
context.window = context;
console.log(JSON.stringify(runInNewContext(scripts.join("\n"), context)));
