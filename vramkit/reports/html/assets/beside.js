// Another result's figures beside this one's: a prediction beside what was measured, or a run before a change.
"use strict";

function drawBeside(report, shown, place) {
  const keys = Object.fromEntries(partsOf(report).map(({ name, key }) => [name, key]));
  const changes = shown.rows.map(([, before, after]) => after - before);
  const largest = changes.reduce((most, change) => Math.max(most, Math.abs(change)), 1);
  const number = (text, attributes = {}) => element("td", { class: "number", ...attributes }, text);
  const difference = (change) => (change ? `${change > 0 ? "+" : "−"}${sizeText(Math.abs(change))}` : "equal");
  const share = (change, before) => (change && before ? `${change > 0 ? "+" : "−"}${shareText(Math.abs(change), before)}` : "");
  const bar = (change) =>
    element("div", {
      class: change > 0 ? "change grew" : "change",
      style: { width: `${(100 * Math.abs(change)) / largest}%` },
    });
  const row = ([name, before, after], i) =>
    element(
      "tr",
      { class: keys[name] ? "" : "sum" },
      element("td", {}, keys[name] ? [swatch(keys[name]), ` ${name}`] : name),
      number(sizeText(before), { title: bytesText(before) }),
      number(sizeText(after), { title: bytesText(after) }),
      number(difference(changes[i]), { title: bytesText(changes[i]) }),
      number(share(changes[i], before), { class: "number share-of" }),
      element("td", { class: "wide" }, changes[i] ? bar(changes[i]) : null),
    );
  fill(
    place,
    shown.subjects.map((text, i) => element("p", { class: "note" }, element("b", {}, shown.heads[i]), `: ${text}`)),
    element(
      "div",
      { class: "scroll" },
      element(
        "table",
        { class: "beside" },
        headings("", ...shown.heads.map((head) => [head]), ["difference"], "", ""),
        element("tbody", {}, shown.rows.map(row)),
      ),
    ),
    element("ul", {}, shown.reasons.map((text) => element("li", {}, text))),
  );
}
