// What every page has: its data, unpacked; themes; and a tip that goes.
"use strict";

function part(id) {
  return document.getElementById(id);
}

/** The data's header, and where the columns that it points to begin. */
async function unpacked() {
  const letters = atob(part("data").textContent.trim());
  const packed = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i += 1) packed[i] = letters.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const content = await new Response(stream).arrayBuffer();
  const headerEnd = 8 + new Uint32Array(content, 0, 1)[0];
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(content, 8, headerEnd - 8)));
  return { header, content, headerEnd };
}

/** What a function reads; where it can't, the page shows the report as text. */
async function opened(read) {
  try {
    return await read();
  } catch (error) {
    part("as-text").open = true;
    part("failed").hidden = false;
    throw error;
  }
}

/** Show the page, drawn again for each theme. */
function show(draw) {
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const { dataset } = document.documentElement;
  function setTheme(theme) {
    dataset.theme = theme;
    draw();
  }
  part("theme").addEventListener("click", () => setTheme(dataset.theme === "dark" ? "light" : "dark"));
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  let before = null;
  addEventListener("beforeprint", () => {
    before = dataset.theme;
    if (before === "dark") setTheme("light");
  });
  addEventListener("afterprint", () => {
    if (before === "dark") setTheme("dark");
  });
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") tip.hide();
  });
  addEventListener("scroll", () => tip.hide(), { passive: true });
  part("loading").hidden = true;
  part("report").hidden = false;
  setTheme(dark.matches ? "dark" : "light");
  dataset.ready = "";
}
