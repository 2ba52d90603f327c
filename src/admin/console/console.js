// Makes the pages more convenient. The console works without JavaScript.
"use strict";
(() => {
  const language = document.documentElement.lang;

  // Adds the local time to each time in UTC.
  const localize = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const at = new Date(time.dateTime);
      if (time.dataset.local || Number.isNaN(at.getTime()) || at.getTimezoneOffset() === 0) continue;
      time.dataset.local = "yes";
      const local = document.createElement("span");
      local.className = "local";
      local.textContent = ` (${at.toLocaleString(language, { dateStyle: "short", timeStyle: "medium" })})`;
      time.append(local);
    }
  };

  // Shows the buttons that copy a text, where the browser permits it.
  const copyable = (root) => {
    if (!navigator.clipboard) return;
    for (const button of root.querySelectorAll("button[data-copy]")) {
      button.hidden = false;
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest && event.target.closest("button[data-copy]");
    if (!button) return;
    try {
      await navigator.clipboard.writeText(button.dataset.copy);
      button.textContent = button.dataset.copied;
    } catch (_) { /* the text can still be selected */ }
  });

  const enhance = (root) => { localize(root); copyable(root); };
  enhance(document);

  // Renews the live part of a page. If that fails, says so, and greys the part.
  const live = document.getElementById("live");
  if (!live) return;
  const every = Number(live.dataset.every) * 1000;
  const warning = document.getElementById("stale");
  const old = (text, link) => {
    live.classList.add("old");
    if (warning.dataset.text === text) return;
    warning.dataset.text = text;
    const message = document.createElement("div");
    message.className = "message bad";
    const line = document.createElement("p");
    line.append(text);
    if (link) {
      const to = document.createElement("a");
      to.href = `/sign-in?back=${encodeURIComponent(location.pathname + location.search)}`;
      to.textContent = live.dataset.signIn;
      line.append(" ", to);
    }
    message.append(line);
    warning.replaceChildren(message);
  };
  const fresh = () => {
    live.classList.remove("old");
    delete warning.dataset.text;
    warning.replaceChildren();
  };
  let pending = false;
  const renew = async () => {
    if (document.visibilityState !== "visible" || pending) return;
    pending = true;
    try {
      const answer = await fetch(live.dataset.path, {
        headers: { "X-Renewal": "1" }, redirect: "manual", signal: AbortSignal.timeout(every),
      });
      if (answer.ok) {
        const text = await answer.text();
        // The focus stays on the same link.
        const focused = live.contains(document.activeElement) ? document.activeElement : null;
        const href = focused && focused.getAttribute("href");
        const open = new Set([...live.querySelectorAll("details[open][id]")].map((one) => one.id));
        live.innerHTML = text;
        enhance(live);
        for (const id of open) {
          const details = document.getElementById(id);
          if (details) details.open = true;
        }
        if (href) {
          const again = [...live.querySelectorAll("a")].find((a) => a.getAttribute("href") === href);
          if (again) again.focus();
        }
        fresh();
      } else if (answer.status === 401 || answer.type === "opaqueredirect") {
        old(live.dataset.ended, true);
      } else {
        old(live.dataset.stale, false);
      }
    } catch (_) {
      old(live.dataset.stale, false);
    } finally {
      pending = false;
    }
  };
  setInterval(renew, every);
  document.addEventListener("visibilitychange", renew);
})();
