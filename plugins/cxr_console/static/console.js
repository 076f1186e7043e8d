// Light or dark as Airflow is; links to Airflow's own pages out of its frame; small comforts. All works without.
"use strict";

const framed = window.parent !== window;

function dark() {
  try {
    if (framed) return window.parent.document.documentElement.classList.contains("dark");
    const chosen = localStorage.getItem("theme");
    if (chosen === "dark" || chosen === "light") return chosen === "dark";
  } catch { /* storage is forbidden */ }
  return matchMedia("(prefers-color-scheme: dark)").matches;
}

function dress() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
}

dress();
if (framed) {
  try {
    new MutationObserver(dress).observe(window.parent.document.documentElement, { attributeFilter: ["class"] });
  } catch { /* the frame is another site's */ }
}
addEventListener("storage", dress);

// A page that refreshes itself stays where it was scrolled to, and gives the keyboard back to where it was.
function keepPlace() {
  const stops = () => [...document.querySelectorAll("a, button, input, select, textarea, summary, iframe")];
  try {
    const [path, down, place] = JSON.parse(sessionStorage.getItem("cxr-place") ?? "[]");
    if (path === location.pathname) {
      scrollTo(0, down);
      stops()[place]?.focus({ preventScroll: true });
    }
    addEventListener("pagehide", () => {
      const place = stops().indexOf(document.activeElement);
      sessionStorage.setItem("cxr-place", JSON.stringify([location.pathname, scrollY, place]));
    });
  } catch { /* storage is forbidden */ }
}

// Airflow's frame may not move the page around it, but may ask that page's own router to.
function goTo(address) {
  const page = window.parent;
  page.history.pushState({}, "", address);
  page.dispatchEvent(new page.PopStateEvent("popstate", { state: {} }));
}

// A script of this frame ends with it; one of the page around it goes on.
function load(address) {
  const script = window.parent.document.createElement("script");
  script.src = address;
  window.parent.document.head.append(script);
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-airflow]");
  if (!link || !framed || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  goTo(link.href);
});

document.addEventListener("DOMContentLoaded", () => {
  document.documentElement.classList.toggle("framed", framed);

  if (document.querySelector("#refreshing[data-on]")) keepPlace();

  // Filters apply as soon as they are chosen.
  for (const form of document.querySelectorAll("form[data-filter]")) {
    form.addEventListener("change", () => form.requestSubmit());
  }

  // All files of a page at once.
  const all = document.querySelector("#all-files");
  const boxes = [...document.querySelectorAll("input[name=files]")];
  const count = document.querySelector("#chosen-files");
  function tell() {
    if (count) count.textContent = `${boxes.filter((box) => box.checked).length} chosen`;
  }
  if (all) {
    all.closest("label").hidden = false;
    all.addEventListener("change", () => {
      for (const box of boxes) box.checked = all.checked;
      tell();
    });
  }
  for (const box of boxes) box.addEventListener("change", tell);
  tell();

  // A report's links lead out of its own little frame: to the console's pages here, to Airflow's around.
  const report = document.querySelector("#report");
  if (report) report.addEventListener("load", () => report.contentDocument?.addEventListener("click", follow));

  // Airflow's own dialog to trigger a run has no address of its own.
  for (const link of document.querySelectorAll("a[data-trigger]")) {
    if (framed) link.addEventListener("click", () => load(link.dataset.trigger));
  }
});

function follow(event) {
  const link = event.target.closest("a[target=_blank]");
  if (!link) return;
  const ours = link.origin === location.origin;
  if (ours && link.pathname.includes("/cxr/")) location.assign(link.href);
  else if (ours && framed) goTo(link.href);
  else return;
  event.preventDefault();
}
