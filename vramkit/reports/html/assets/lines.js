// The lines of the program that made what is there at a moment.
"use strict";

const LINE_ROWS = 20;

function drawLines(report, device, box, moment, inside) {
  const { owner, requested, category } = device.allocations;
  const parts = partsOf(report);
  const rows = aliveAt(device.allocations, moment).filter((row) => !inside || (owner[row] >= 0 && inside[owner[row]]));
  const lines = new Map(); // text of a line -> its allocations
  let total = 0;
  for (const row of rows) {
    const line = lineOf(device, row);
    if (!lines.has(line)) lines.set(line, { size: 0, rows: [], sizes: parts.map(() => 0) });
    const held = lines.get(line);
    held.size += requested[row];
    held.sizes[category[row]] += requested[row];
    held.rows.push(row);
    total += requested[row];
  }
  const known = [...lines].filter(([line]) => line).sort(([, a], [, b]) => b.size - a.size);
  if (!known.length) {
    fill(box, element("p", { class: "note" }, "Nothing is alive here of which the line is known."));
    return;
  }
  const shown = known.slice(0, LINE_ROWS);
  const rest = total - shown.reduce((sum, [, held]) => sum + held.size, 0);
  const largest = shown[0][1].size || 1;
  const bar = ({ sizes }) =>
    element(
      "div",
      { class: "bar small" },
      parts
        .map(({ key, name }, i) => ({ key, name, size: sizes[i] }))
        .filter(({ size }) => size > 0)
        .map(({ key, name, size }) =>
          element("div", {
            class: `part ${key}`,
            title: `${name} ${sizeText(size)}`,
            style: { width: `${(100 * size) / largest}%` },
          }),
        ),
    );
  const body = shown.map(([line, held]) =>
    element(
      "tr",
      {},
      element("td", { class: "number" }, sizeText(held.size)),
      element("td", { class: "number" }, shareText(held.size, total)),
      element("td", { class: "number count" }, countText(held.rows.length)),
      element("td", { class: "what" }, line),
      element("td", { class: "wide" }, bar(held)),
    ),
  );
  if (rest > 0)
    body.push(
      element(
        "tr",
        {},
        element("td", { class: "number" }, sizeText(rest)),
        element("td", { class: "number" }, shareText(rest, total)),
        element("td", {}),
        element("td", { class: "what" }, "no known line, or one with less"),
        element("td", {}),
      ),
    );
  fill(
    box,
    element(
      "div",
      { class: "scroll" },
      element(
        "table",
        { class: "lines" },
        headings(["size"], ["share"], ["tensors"], "line", ""),
        element("tbody", {}, body),
      ),
    ),
  );
}
