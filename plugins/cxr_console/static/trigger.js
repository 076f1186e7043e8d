// Opens Airflow's dialog to trigger a run as soon as its page is there. Airflow 3.3 has no address for the dialog.
"use strict";

(() => {
  const until = Date.now() + 15000;
  const wait = setInterval(() => {
    const there = location.pathname.endsWith("/dags/cxr_retraining");
    const button = there && document.querySelector("[data-testid=trigger-dag-button]");
    if (button) button.click();
    if (button || Date.now() > until) clearInterval(wait);
  }, 200);
})();
