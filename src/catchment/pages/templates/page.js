"use strict";
(() => {
  const root = document.documentElement;
  const stored = (write) => { try { return write(window.localStorage); } catch { return null; } };

  const theme = document.querySelector("button.theme");
  const system = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const label = () => { theme.querySelector("span").textContent = isDark() ? "Light theme" : "Dark theme"; };
  const remembered = stored((s) => s.getItem("catchment-theme"));
  if (remembered === "dark" || remembered === "light") root.dataset.theme = remembered;
  theme.hidden = false;
  label();
  system.addEventListener("change", label);
  theme.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    stored((s) => s.setItem("catchment-theme", root.dataset.theme));
    label();
  });

  const PAGE = 12;
  const form = document.querySelector("form.filters");
  if (form) {
    const items = [...document.querySelectorAll(".flips > li")];
    const texts = items.map((item) => [...item.querySelectorAll("pre, dd")].map((part) => part.textContent).join(" ").toLowerCase());
    const status = document.querySelector(".count");
    const more = document.querySelector("button.more");
    let limit = PAGE;

    const show = () => {
      const task = form.elements.task.value;
      const direction = form.elements.direction.value;
      const words = form.elements.text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let matching = 0;
      items.forEach((item, index) => {
        const fits = (!task || item.dataset.task === task)
          && (!direction || item.dataset.direction === direction)
          && words.every((word) => texts[index].includes(word));
        matching += fits;
        item.hidden = !fits || matching > limit;
      });
      const shown = Math.min(limit, matching);
      status.textContent = matching === 0 ? "No flipped item matches."
        : `Showing ${shown} of ${matching}${matching < items.length ? " that match" : ""}`;
      const left = matching - shown;
      more.hidden = left === 0;
      more.textContent = `Show ${Math.min(left, 2 * PAGE)} more`;
    };
    form.addEventListener("input", () => { limit = PAGE; show(); });
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => {
      const before = items.filter((item) => !item.hidden).length;
      limit += 2 * PAGE;
      show();
      items.filter((item) => !item.hidden)[before]?.querySelector("summary").focus();
    });
    form.hidden = false;
    status.hidden = false;
    show();
  }

  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    opened.forEach((details) => { details.open = true; });
  });
  window.addEventListener("afterprint", () => opened.forEach((details) => { details.open = false; }));
})();
