// The list of conversations that this browser keeps. The server sees only the one that is open.
const PREFIX = "abctune.chat.", list = element.querySelector("ul"), said = element.querySelector("[role=status]");
const read = (key) => { try { return JSON.parse(localStorage.getItem(PREFIX + key)); } catch { return null; } };
const open = (key) => {
    const chat = read(key);
    if (!chat) return;
    sessionStorage.setItem("abctune.open", key);
    trigger("select", {value: JSON.stringify({key, messages: chat.messages})});
};
const title = (chat) => chat.title || (chat.messages.find((one) => one.role === "user") || {content: "Conversation"}).content.slice(0, 80);
const button = (text, name, what) => {
    const made = document.createElement("button");
    made.type = "button"; made.textContent = text; made.setAttribute("aria-label", name); made.title = name; made.addEventListener("click", what);
    return made;
};
const rename = (key, item) => {
    const box = document.createElement("input"), chat = read(key);
    box.type = "text"; box.value = title(chat); box.maxLength = 80; box.setAttribute("aria-label", "Name of the conversation");
    let ended = false;
    const done = (keepIt) => {
        if (ended) return;
        ended = true;
        if (keepIt && box.value.trim()) localStorage.setItem(PREFIX + key, JSON.stringify({...read(key), title: box.value.trim()}));
        box.remove(); draw();
    };
    box.addEventListener("keydown", (event) => { if (event.key === "Enter") done(true); if (event.key === "Escape") done(false); });
    box.addEventListener("blur", () => done(true));
    item.replaceChildren(box); box.focus(); box.select();
};
const remove = (key, pressed) => {
    if (pressed.dataset.sure === undefined) {
        pressed.dataset.sure = ""; pressed.textContent = "sure?"; setTimeout(draw, 4000);
        return;
    }
    localStorage.removeItem(PREFIX + key);
    if (sessionStorage.getItem("abctune.open") === key) { sessionStorage.removeItem("abctune.open"); trigger("clear"); }
    draw();
};
function draw() {
    if (element.contains(document.activeElement) && document.activeElement.type === "text") return;
    const keys = Object.keys(localStorage).filter((key) => key.startsWith(PREFIX)).map((key) => key.slice(PREFIX.length));
    const chats = keys.map((key) => [key, read(key)]).filter(([, chat]) => chat && Array.isArray(chat.messages)).sort(([, a], [, b]) => b.at - a.at);
    const current = sessionStorage.getItem("abctune.open");
    list.replaceChildren(...chats.map(([key, chat]) => {
        const item = document.createElement("li"), name = document.createElement("button");
        name.type = "button"; name.className = "open"; name.textContent = name.title = title(chat); name.addEventListener("click", () => open(key));
        if (key === current) item.setAttribute("aria-current", "true");
        item.append(name, button("✎", "Rename " + title(chat), () => rename(key, item)), button("✕", "Delete " + title(chat), (event) => remove(key, event.currentTarget)));
        return item;
    }));
    element.querySelector(".none").hidden = chats.length > 0;
}
element.querySelector("input[type=file]").addEventListener("change", async (event) => {
    const file = event.target.files[0];
    event.target.value = "";
    try {
        if (!file || file.size > 2e6) throw new Error("larger than 2 MB");
        const {messages} = JSON.parse(await file.text());
        if (!Array.isArray(messages) || !messages.length) throw new Error("it holds no messages");
        const key = "i" + Date.now().toString(36) + Math.random().toString(36).slice(2, 8);
        localStorage.setItem(PREFIX + key, JSON.stringify({at: Date.now(), title: file.name.replace(/\.json$/, "").slice(0, 80), messages}));
        open(key); draw();
    } catch (error) { said.textContent = "This file is no conversation: " + error.message; }
});
document.addEventListener("abctune-kept", (event) => { said.textContent = event.detail; draw(); });
window.addEventListener("storage", draw);
try { draw(); } catch { said.textContent = "This browser keeps no conversations."; }
