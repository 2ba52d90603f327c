// Renews the overview now and then. Everything works without this.
"use strict";
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const every = Number(live.dataset.every) * 1000;
  const renew = async () => {
    if (document.visibilityState !== "visible") return;
    try {
      const answer = await fetch("/live", { headers: { "X-Renewal": "1" }, redirect: "manual" });
      // The session has ended, or the server has: what is there stays.
      if (!answer.ok) return;
      live.innerHTML = await answer.text();
    } catch (_) { /* the next one may come through */ }
  };
  setInterval(renew, every);
  document.addEventListener("visibilitychange", renew);
})();
