// Another result's figures beside this one's: a prediction beside what was measured.
"use strict";

function drawBeside(shown, place) {
  const difference = (before, after) =>
    before === after ? "equal" : `${after > before ? "+" : "−"}${sizeText(Math.abs(after - before))}`;
  const number = (text, attributes = {}) => element("td", { class: "number", ...attributes }, text);
  fill(
    place,
    element(
      "div",
      { class: "scroll" },
      element(
        "table",
        { class: "curve-table" },
        element(
          "thead",
          {},
          element(
            "tr",
            {},
            ["", ...shown.heads, "difference"].map((text) => element("th", { scope: "col" }, text)),
          ),
        ),
        element(
          "tbody",
          {},
          shown.rows.map(([name, before, after]) =>
            element(
              "tr",
              {},
              element("td", {}, name),
              number(sizeText(before), { title: bytesText(before) }),
              number(sizeText(after), { title: bytesText(after) }),
              number(difference(before, after)),
            ),
          ),
        ),
      ),
    ),
    element("ul", {}, shown.reasons.map((text) => element("li", {}, text))),
  );
}
