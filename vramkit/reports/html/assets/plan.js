// The page of a plan: the picture, the code of the chosen variant, and the table.
"use strict";

(async () => {
  const { header: plan } = await opened(unpacked);
  const { variants } = plan;
  let chosen = plan.shown;

  function drawFrame() {
    document.title = plan.title;
    fill(part("title"), plan.title);
    fill(part("facts"), plan.facts.join(" · "));
    const [first, ...others] = plan.verdict;
    fill(
      part("verdict"),
      element("p", { class: plan.cheapest === null ? "banner bad" : "banner good" }, first),
      others.map((sentence) => element("p", { class: "note" }, sentence)),
    );
    const left = plan.left_out.map(({ name, reason }) => element("li", {}, element("b", {}, name), `: ${reason}`));
    fill(part("left"), left);
    part("left-section").hidden = !left.length;
    fill(part("notes"), plan.notes.map((note) => element("li", {}, note)));
    part("notes-section").hidden = !plan.notes.length;
  }

  function choose(index) {
    chosen = index;
    tip.hide();
    const { dataset } = document.activeElement;
    const focused = dataset.variant === undefined ? null : `${document.activeElement.tagName}[data-variant="${index}"]`;
    draw();
    if (focused) document.querySelector(focused)?.focus({ preventScroll: true });
    part("code").scrollIntoView({ block: "nearest" });
  }

  function drawCode() {
    const each = variants[chosen];
    fill(
      part("code"),
      element("h2", {}, `Code: ${each.name}`),
      each.numbers.map((text) => element("p", { class: "note" }, `Numerically: ${text}.`)),
      element("pre", {}, each.code),
    );
  }

  function drawTable() {
    const hasLargest = variants.some(({ largest }) => largest);
    const heads = ["", "reserved", "allocated", "fits", "operations", "over PCIe", "effect", "largest", "change"];
    const isShown = (head) => head !== "largest" || hasLargest;
    const rows = variants.map((each, index) =>
      element(
        "tr",
        { class: index === chosen ? "chosen" : null },
        element("td", {}, index === plan.cheapest ? ">" : each.on_front ? "*" : ""),
        element("td", { class: "number", title: bytesText(each.reserved) }, sizeText(each.reserved)),
        element("td", { class: "number", title: bytesText(each.allocated) }, sizeText(each.allocated)),
        element("td", { class: each.fits ? "" : "alarm" }, each.fits ? "yes" : "no"),
        element("td", { class: "number" }, each.operations === null ? "-" : `x${each.operations.toFixed(2)}`),
        element("td", { class: "number" }, each.transferred === null ? "-" : sizeText(each.transferred)),
        element("td", {}, swatch(`effect-${each.effect}`), ` ${plan.effects[each.effect]}`),
        hasLargest ? element("td", { class: "number" }, each.largest) : null,
        element(
          "td",
          { class: "what" },
          element(
            "button",
            { type: "button", class: "link", "data-variant": index, onclick: () => choose(index) },
            each.name,
          ),
        ),
      ),
    );
    fill(
      part("variants"),
      element(
        "table",
        { class: "variants" },
        element("thead", {}, element("tr", {}, heads.filter(isShown).map((text) => element("th", { scope: "col" }, text)))),
        element("tbody", {}, rows),
      ),
    );
  }

  function draw() {
    drawScatter(plan, part("scatter"), chosen, choose);
    drawCode();
    drawTable();
  }

  drawFrame();
  show(draw);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width === innerWidth) return;
    width = innerWidth;
    draw();
  });
})();
