// A button on each block of code that copies what is in it: without prompts, and, where there are
// prompts, without what the commands print. Output ("text" blocks) has no button.
"use strict";

const PROMPT = /^(\$|>>>|\.\.\.)( |$)/;
const SECONDS_SHOWN = 1.5;

function whatToCopy(text) {
  const lines = text.replace(/\n$/, "").split("\n");
  const commands = lines.filter((line) => PROMPT.test(line));
  return (commands.length ? commands.map((line) => line.replace(PROMPT, "")) : lines).join("\n");
}

function addButton(block) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "copy";
  button.textContent = "Copy";
  button.setAttribute("aria-label", "Copy this code");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(whatToCopy(block.querySelector("pre").textContent));
      button.textContent = "Copied";
    } catch {
      button.textContent = "Not allowed";
    }
    setTimeout(() => { button.textContent = "Copy"; }, SECONDS_SHOWN * 1000);
  });
  block.append(button);
}

document.addEventListener("DOMContentLoaded", () => {
  // Only a page from https, or from this machine, may write to the clipboard.
  if (!navigator.clipboard) return;
  for (const block of document.querySelectorAll('div[class*="highlight-"]')) {
    if (!/highlight-(text|default|none|output)\b/.test(block.className)) addButton(block);
  }
});
