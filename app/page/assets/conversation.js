// Runs once, on the element that holds the conversation; what is inside is replaced at every new word.
const copied = async (text, button) => {
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else {  // not on a page that comes without encryption from another machine
        const area = document.createElement("textarea");
        area.value = text; document.body.append(area); area.select(); document.execCommand("copy"); area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = button.dataset.do === "copy" ? "Copy" : "Copy all"; }, 1500);
};
// A message is edited in a dialog of its own: an answer that is being written meanwhile replaces what is in the conversation.
const dialog = document.createElement("dialog"), area = document.createElement("textarea");
const editButton = (text, what) => {
    const made = document.createElement("button");
    made.type = "button"; made.textContent = text; made.addEventListener("click", what);
    return made;
};
let edited = 0;
const save = () => { dialog.close(); trigger("edit", {index: edited, value: area.value}); };
const edit = (turn) => {
    edited = Number(turn.dataset.at); area.value = turn.dataset.raw;
    dialog.showModal(); area.focus();
};
dialog.className = "edit"; dialog.setAttribute("aria-label", "Edit message"); area.setAttribute("aria-label", "Message"); area.rows = 6;
dialog.append(area, editButton("Send", save), editButton("Cancel", () => dialog.close()));
area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); save(); }
});
document.body.append(dialog);
element.addEventListener("click", (event) => {
    const button = event.target.closest("[data-do]");
    if (!button) return;
    const turn = button.closest("[data-at]"), what = button.dataset.do;
    if (what === "copy") copied(turn.dataset.raw, button);
    else if (what === "copy-all")
        copied([...element.querySelectorAll("[data-raw][data-at]")].map((one) => one.dataset.raw).join("\n\n"), button);
    else if (what === "example") trigger("example_select", {value: button.dataset.raw});
    else if (what === "edit") edit(turn);
    else if (what === "tokens") trigger("select", {index: Number(turn.dataset.at)});
    else trigger(what);
});

// The newest words stay in sight, unless the reader has scrolled up.
const scroller = () => element.closest("#chatbot") || element;
let atEnd = true;
scroller().addEventListener("scroll", () => {
    const box = scroller();
    atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
});

// The browser keeps each conversation under its key; `abctune.open` of a tab says which one it shows.
const keep = () => {
    const shown = element.querySelector("[data-chat]"), key = shown && shown.dataset.chat;
    if (!key) return;
    const place = "abctune.chat." + key;
    const messages = [...element.querySelectorAll(".turn")].map((turn) => ({
        role: turn.classList.contains("user") ? "user" : "assistant",
        content: turn.dataset.raw,
        ...(turn.dataset.how ? {how: JSON.parse(turn.dataset.how)} : {}),
    })).filter((message) => message.content || message.how);
    try {
        sessionStorage.setItem("abctune.open", key);
        if (messages.length) {
            const before = JSON.parse(localStorage.getItem(place) || "{}");
            localStorage.setItem(place, JSON.stringify({...before, at: Date.now(), messages}));
        } else localStorage.removeItem(place);
        document.dispatchEvent(new CustomEvent("abctune-kept", {detail: ""}));
    } catch (error) {  // full, or forbidden in this browser
        document.dispatchEvent(new CustomEvent("abctune-kept", {detail: "This browser keeps no more: " + error.name}));
    }
};
const drawn = () => {
    window.abctuneTypeset?.(element);
    if (atEnd) { const box = scroller(); box.scrollTop = box.scrollHeight; }
};
let newest = 0;
watch("value", () => {
    const number = Number(element.querySelector("[data-number]")?.dataset.number || 0);
    if (number < newest) { trigger("tick"); return; }  // an earlier view that came late: ask for the present one
    newest = number; keep(); drawn();
});
