// Updates the overview regularly. The console works without JavaScript.
"use strict";
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const every = Number(live.dataset.every) * 1000;
  const renew = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      const answer = await fetch("/live", { headers: { "X-Renewal": "1" }, redirect: "manual" });
      // The session or the server has ended: keep what is shown.
      if (!answer.ok) return;
      live.innerHTML = await answer.text();
    } catch (_) { /* try again at the next interval */ }
  };
  setInterval(renew, every);
  document.addEventListener("visibilitychange", renew);
})();
