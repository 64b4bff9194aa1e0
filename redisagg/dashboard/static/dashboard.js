// What the pages do beyond links and forms: they stay up to date, count down, ask before they
// delete, and follow the keyboard. Without this script everything but that works.
"use strict";

(() => {
  const $ = (selector, root = document) => root.querySelector(selector);
  const $$ = (selector, root = document) => [...root.querySelectorAll(selector)];
  const body = document.body;

  // --- times ---------------------------------------------------------------------------------

  let ahead = 0; // seconds by which the clock of Redis is ahead of this one
  const readClock = () => {
    const now = Number($("#live")?.dataset.now || 0);
    if (now) ahead = now - Date.now() / 1000;
  };

  const span = (seconds) => {
    if (seconds < 10) return seconds < 1 ? "0 s" : `${Math.floor(seconds)} s`;
    const whole = Math.floor(seconds);
    for (const [size, unit, smaller, small] of [[86400, "d", 3600, "h"], [3600, "h", 60, "min"], [60, "min", 1, "s"]]) {
      if (whole >= size) {
        const rest = Math.floor((whole % size) / smaller);
        return rest ? `${Math.floor(whole / size)} ${unit} ${rest} ${small}` : `${Math.floor(whole / size)} ${unit}`;
      }
    }
    return `${whole} s`;
  };

  const tick = () => {
    const now = Date.now() / 1000 + ahead;
    for (const each of $$("time[data-until]")) {
      const at = Number(each.dataset.until);
      const left = at - now;
      const late = "late" in each.dataset;
      let text;
      if (left > 0) text = `in ${span(left)}`;
      else if (late && at <= 0) text = "now";
      else text = `${span(-left)} ${late ? "late" : "ago"}`;
      if (each.textContent !== text) each.textContent = text;
      if (late) each.classList.toggle("late", left < -2);
      if (!each.title) each.title = local(at);
    }
  };

  const local = (at) => new Date(at * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });

  const localTimes = () => {
    for (const each of $$("time[data-moment]")) {
      each.title = each.dateTime;
      each.textContent = local(Number(each.dataset.moment));
    }
    for (const each of $$("text[data-clock]")) {
      const at = new Date(Number(each.dataset.clock) * 1000);
      const form = each.dataset.form;
      each.textContent = form.includes("%d")
        ? at.toLocaleDateString(undefined, { month: "short", day: "numeric" })
        : at.toLocaleTimeString(undefined, { hour: "2-digit", minute: "2-digit", ...(form.includes("%S") && { second: "2-digit" }) });
    }
  };

  // --- live ----------------------------------------------------------------------------------

  const state = $("#live-state");
  const show = (kind, text) => {
    if (!state) return;
    state.hidden = false;
    state.className = `live-state ${kind}`;
    $(".live-text", state).textContent = text;
  };

  // Nobody wants a page to change under the hand.
  const busy = () => {
    const live = $("#live");
    if (!live || document.hidden) return true;
    if ($("dialog[open]") || $$("input:checked", live).length) return true;
    const active = document.activeElement;
    if (active && live.contains(active) && active.matches("input, select, textarea, summary")) return true;
    const selected = window.getSelection();
    return Boolean(selected && !selected.isCollapsed && live.contains(selected.anchorNode));
  };

  let waiting = false;
  let refreshedAt = Date.now();
  const refresh = () => {
    const live = $("#live");
    if (!live || !window.htmx || !live.hasAttribute("hx-get")) return;
    if (busy()) {
      waiting = true;
      if (!document.hidden) show("held", "New data; held while you work");
      return;
    }
    waiting = false;
    refreshedAt = Date.now();
    show("on", "Live");
    window.htmx.trigger(live, "news");
  };

  let kept = null;
  document.addEventListener("htmx:beforeSwap", () => {
    const active = document.activeElement;
    const rows = $$("#live tbody tr");
    kept = { open: $$("#live details[open]").map((each) => each.id), row: rows.indexOf(active?.closest?.("tr")) };
  });
  document.addEventListener("htmx:afterSettle", () => {
    for (const id of kept?.open || []) {
      const each = id && document.getElementById(id);
      if (each) each.open = true;
    }
    if (kept && kept.row >= 0) $$("#live tbody tr")[kept.row]?.focus({ preventScroll: true });
    kept = null;
    settle();
  });
  // A page that does not come, such as after the session has ended, leaves the old one.
  document.addEventListener("htmx:responseError", () => show("off", "Not up to date"));
  document.addEventListener("htmx:sendError", () => show("off", "Not connected"));

  const listen = () => {
    if (!body.dataset.live || !window.EventSource) return;
    let source = null;
    const open = () => {
      if (source) return;
      source = new EventSource(body.dataset.live);
      let first = true;
      source.addEventListener("open", () => show("on", "Live"));
      source.addEventListener("news", (event) => {
        const news = JSON.parse(event.data);
        document.title = `${news.level === "bad" ? "⚠ " : ""}${document.title.replace(/^⚠ /, "")}`;
        if (!first || Date.now() - refreshedAt > 3000) refresh();
        first = false;
      });
      source.addEventListener("error", () => show("off", "Not connected"));
    };
    const close = () => {
      source?.close();
      source = null;
    };
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return close();
      open();
      refresh();
    });
    window.addEventListener("pagehide", close);
    window.addEventListener("pageshow", () => document.hidden || open());
    if (!document.hidden) open();
  };

  setInterval(() => {
    tick();
    if (waiting && !busy()) refresh();
    const poll = $("#live [data-poll]"); // what server-sent events do not tell
    if (poll && Date.now() - refreshedAt > 1000 * Number(poll.dataset.poll) - 100) refresh();
  }, 1000);

  // --- forms ---------------------------------------------------------------------------------

  const dialog = $("#confirm");
  document.addEventListener("submit", (event) => {
    const form = event.target;
    const text = event.submitter?.dataset.confirm || form.dataset.confirm;
    if (!text || form.dataset.confirmed || !dialog?.showModal) {
      delete form.dataset.confirmed;
      return;
    }
    event.preventDefault();
    $("#confirm-text").textContent = text;
    dialog.returnValue = "";
    dialog.onclose = () => {
      if (dialog.returnValue !== "yes") return;
      form.dataset.confirmed = "1";
      form.requestSubmit(event.submitter);
    };
    dialog.showModal();
    $("button[value=no]", dialog).focus();
  });

  const countSelected = () => {
    for (const form of $$("form[data-many]")) {
      const boxes = [...form.elements].filter((each) => each.name === "id" || each.name === "task").filter((each) => each.type === "checkbox");
      const checked = boxes.filter((each) => each.checked).length;
      const matching = form.querySelector("[data-matching]")?.checked;
      const told = $("[data-selected]", form);
      if (told) {
        told.dataset.before ??= told.textContent;
        told.textContent = matching ? "All are selected" : checked ? `${checked} selected` : told.dataset.before;
      }
      const all = $("[data-all]", form);
      if (all) {
        all.checked = boxes.length > 0 && checked === boxes.length;
        all.indeterminate = checked > 0 && checked < boxes.length;
      }
    }
  };
  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.matches?.("[data-all]")) {
      for (const each of box.form.elements) if (each.name === "id" && !each.disabled) each.checked = box.checked;
    }
    countSelected();
  });
  document.addEventListener("click", (event) => {
    const opener = event.target.closest?.("[data-open]");
    if (opener) document.getElementById(opener.dataset.open)?.showModal();
    // A checkbox within a summary is for selecting, not for opening.
    if (event.target.matches?.("summary input")) event.stopPropagation();
  });

  // --- keyboard ------------------------------------------------------------------------------

  let going = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches?.("input:not([type=checkbox]), select, textarea");
    if (event.key === "Escape" && typing) event.target.blur();
    if (typing || $("dialog[open]")) return;
    if (Date.now() < going) {
      going = 0;
      const link = $(`#nav a[data-key="${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
      }
      return;
    }
    const rows = $$("tbody tr");
    const at = rows.indexOf(document.activeElement?.closest?.("tr"));
    const actions = {
      "/": () => $("#search")?.focus(),
      "?": () => $("#keys")?.showModal(),
      g: () => { going = Date.now() + 1500; },
      r: () => refresh(),
      j: () => rows[Math.min(at + 1, rows.length - 1)]?.focus(),
      k: () => rows[Math.max(at - 1, 0)]?.focus(),
      x: () => { const box = rows[at] && $("input[type=checkbox]", rows[at]); if (box && !box.disabled) box.click(); },
      Enter: () => { if (document.activeElement === rows[at]) $(".main a", rows[at])?.click(); },
    };
    const act = actions[event.key];
    if (!act || (event.key === "Enter" && document.activeElement !== rows[at])) return;
    event.preventDefault();
    act();
  });

  // --- start ---------------------------------------------------------------------------------

  const settle = () => {
    readClock();
    localTimes();
    tick();
    countSelected();
  };
  const address = new URL(window.location.href);
  if (address.searchParams.has("m")) {
    address.searchParams.delete("m"); // the message was shown
    window.history.replaceState(null, "", address);
  }
  settle();
  $("#nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
  listen();
})();
