"use strict";
// The slider of a load map: every frame is "step:one letter per cell".
for (const map of document.querySelectorAll("[data-frames]")) {
  const frames = map.dataset.frames.split(";").map((frame) => frame.split(":"));
  const slider = map.querySelector("input");
  const output = map.querySelector("output");
  const cells = Array.from(map.querySelectorAll("rect.cell"));
  const show = () => {
    const [step, shades] = frames[Number(slider.value)];
    output.textContent = step;
    slider.setAttribute("aria-valuetext", "step " + step);
    cells.forEach((cell, index) => cell.setAttribute("class", "cell h" + shades[index]));
  };
  slider.addEventListener("input", show);
  show();
}
// Panels of which one is shown.
for (const tabs of document.querySelectorAll("[data-tabs]")) {
  const panels = Array.from(tabs.children);
  tabs.classList.add("scripted");
  const label = document.createElement("label");
  label.className = "choose";
  label.append(tabs.dataset.tabs + " ");
  const select = document.createElement("select");
  panels.forEach((panel, index) => select.add(new Option(panel.dataset.name, String(index))));
  const show = () => panels.forEach((panel, index) => {
    panel.hidden = index !== Number(select.value);
  });
  select.addEventListener("change", show);
  label.append(select);
  tabs.prepend(label);
  show();
}
