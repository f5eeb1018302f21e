// The words of the page in English and Chinese. Elements say by data-i18n what they show.

const WORDS = {
  en: {
    skip: "Skip to the question",
    newChat: "New chat",
    theme: "Light or dark theme",
    settings: "Settings",
    welcomeTitle: "Ask about your pictures",
    welcomeText: "Add, paste or drop pictures. Then ask a question, read their text, or find things in them.",
    conversation: "Conversation",
    composer: "New message",
    images: "Pictures of the message",
    question: "Question",
    addImages: "Add pictures",
    task: "Task",
    send: "Send",
    stop: "Stop",
    hintKeys: "Enter sends, Shift+Enter starts a new line.",
    hintWrong: "Answers can be wrong: check them.",
    drop: "Drop the pictures here",
    model: "Model",
    system: "System prompt",
    maxTokens: "Maximum length of an answer, in tokens",
    temperature: "Temperature (0 always picks the most likely token)",
    wellFormed: "Allow only well-formed boxes",
    checkPresence: "After “Locate”, also ask whether the thing is there",
    apiKey: "API key, if the server needs one",
    done: "Done",
    save: "Save",
    cancel: "Cancel",
    markTitle: "Mark an object to find similar ones in another picture",
    markHelp: "Draw a box around it with the pointer, or type its corners in pixels.",
    clearMark: "Clear",
    taskAsk: "Ask",
    taskLocate: "Locate",
    taskDescribe: "Describe",
    taskRead: "Read",
    taskLike: "Find similar",
    placeAsk: "Ask anything",
    placeLocate: "What to find, for example: the red mug",
    placeDescribe: "Nothing to type: just send",
    placeRead: "Nothing to type: just send",
    placeLike: "Nothing to type: just send",
    saidLocate: "Locate: {0}",
    saidDescribe: "Describe the picture, with boxes",
    saidRead: "Read the text",
    saidLike: "Find objects like the marked one",
    needImage: "Add a picture first.",
    needQuestion: "Type a question first.",
    needTwo: "Add two pictures: the first with the marked object, the second to search.",
    needMark: "Open the first picture and mark an object in it.",
    you: "You",
    answer: "Answer",
    waiting: "Reading…",
    remove: "Remove {0}",
    open: "Open {0}: tiles and tokens",
    tokens: "{0|token|tokens}",
    planAll: "{0|token|tokens} for {1|tile|tiles}; the limit is {2|token|tokens}",
    planNone: "The token count is not known: {0}",
    planOver: "{0|token|tokens}, but the limit is {1}: remove a picture or start a new chat",
    figures: "{0} × {1} px on a canvas of {2} × {3}; {4|tile|tiles} in {5} × {6}; {7|token|tokens}: {8} for the whole picture, {9} for the tiles and what separates them",
    figuresWhole: "{0} × {1} px on a canvas of {2} × {3}, which is a single tile; {4|token|tokens}",
    marked: "marked",
    copy: "Copy text",
    copied: "Copied",
    copyFailed: "The browser did not allow copying.",
    copyCode: "Copy code",
    copyShort: "Copy",
    showAll: "Show all",
    showLess: "Show less",
    again: "Try again",
    savePng: "PNG with boxes",
    saveJson: "JSON",
    usage: "{0|token|tokens} read, {1} of them for pictures; {2} written",
    cut: "The answer was cut off at the maximum length.",
    stopped: "Stopped.",
    empty: "The answer is empty.",
    noBoxes: "The answer has no boxes.",
    otherLabel: "You asked for “{0}”; the model named its box “{1}”.",
    presenceYes: "Asked “{0}”, the model answers yes.",
    presenceNo: "Asked “{0}”, the model answers no. The box may be around something else.",
    presenceUnclear: "Asked “{0}”, the model answers neither yes nor no.",
    boxMeaning: "Boxes are the model’s guesses. They do not show that a thing is really there.",
    picture: "Picture with {0|box|boxes}",
    boxAt: "{0}, from ({1}, {2}) to ({3}, {4}) in pixels",
    unnamed: "unnamed",
    notPicture: "{0} is not a picture that this browser can show. Use PNG, JPEG, WebP or GIF.",
    tooLarge: "{0} is {1} MB; the limit is {2} MB.",
    tooMany: "A conversation can have at most {0|picture|pictures}.",
    offline: "The server cannot be reached. Is it still running?",
    keyNeeded: "The server needs an API key: enter it in the settings.",
    broken: "The answer ended early: the connection was lost.",
    failed: "The server answered with error {0}.",
    exampleLocate: "Find the green triangle",
    exampleCount: "How many red stars are there?",
    exampleChart: "What is the value for Oslo?",
    exampleRead: "What does the image say?",
    themeAuto: "Theme: same as the system",
    themeLight: "Theme: light",
    themeDark: "Theme: dark",
  },
  zh: {
    skip: "跳到输入框",
    newChat: "新对话",
    theme: "深色或浅色",
    settings: "设置",
    welcomeTitle: "向图片提问",
    welcomeText: "添加、粘贴或拖入图片，然后提问、识别文字或查找物体。",
    conversation: "对话",
    composer: "新消息",
    images: "消息中的图片",
    question: "问题",
    addImages: "添加图片",
    task: "任务",
    send: "发送",
    stop: "停止",
    hintKeys: "回车发送，Shift+回车换行。",
    hintWrong: "回答可能有误，请核对。",
    drop: "把图片放到这里",
    model: "模型",
    system: "系统提示词",
    maxTokens: "回答的最大长度（词元）",
    temperature: "温度（0 表示总是选最可能的词元）",
    wellFormed: "只允许格式正确的检测框",
    checkPresence: "“定位”之后，再问一次物体是否存在",
    apiKey: "API 密钥（服务器需要时填写）",
    done: "完成",
    save: "保存",
    cancel: "取消",
    markTitle: "标出一个物体，在另一张图片中查找同类",
    markHelp: "拖动指针框出物体，或输入两个角的像素坐标。",
    clearMark: "清除",
    taskAsk: "提问",
    taskLocate: "定位",
    taskDescribe: "描述",
    taskRead: "读文字",
    taskLike: "找同类",
    placeAsk: "请输入问题",
    placeLocate: "要找什么，例如：红色的杯子",
    placeDescribe: "无需输入，直接发送",
    placeRead: "无需输入，直接发送",
    placeLike: "无需输入，直接发送",
    saidLocate: "定位：{0}",
    saidDescribe: "描述图片并标出检测框",
    saidRead: "读出文字",
    saidLike: "查找与所标物体同类的物体",
    needImage: "请先添加图片。",
    needQuestion: "请先输入问题。",
    needTwo: "请添加两张图片：在第一张中标出物体，在第二张中查找。",
    needMark: "请打开第一张图片，在其中标出一个物体。",
    you: "你",
    answer: "回答",
    waiting: "正在阅读…",
    remove: "移除 {0}",
    open: "打开 {0}：查看图块与词元",
    tokens: "{0} 个词元",
    planAll: "{1} 个图块，共 {0} 个词元，上限 {2} 个",
    planNone: "无法得知词元数：{0}",
    planOver: "{0} 个词元，超过上限 {1} 个：请移除图片或开始新对话",
    figures: "{0} × {1} 像素，画布 {2} × {3}；{4} 个图块，排成 {5} × {6}；{7} 个词元：全图 {8} 个，图块及分隔符 {9} 个",
    figuresWhole: "{0} × {1} 像素，画布 {2} × {3}，只有一个图块；{4} 个词元",
    marked: "已标记",
    copy: "复制文字",
    copied: "已复制",
    copyFailed: "浏览器不允许复制。",
    copyCode: "复制代码",
    copyShort: "复制",
    showAll: "显示全部",
    showLess: "收起",
    again: "重试",
    savePng: "带框 PNG",
    saveJson: "JSON",
    usage: "读入 {0} 个词元，其中图片占 {1} 个；写出 {2} 个",
    cut: "回答达到最大长度，已截断。",
    stopped: "已停止。",
    empty: "回答为空。",
    noBoxes: "回答中没有检测框。",
    otherLabel: "要找的是“{0}”，模型给检测框的名称是“{1}”。",
    presenceYes: "问模型“{0}”，它回答“有”。",
    presenceNo: "问模型“{0}”，它回答“没有”。检测框里可能是别的东西。",
    presenceUnclear: "问模型“{0}”，它既没有回答“有”，也没有回答“没有”。",
    boxMeaning: "检测框只是模型的猜测，不代表图中真的有这个物体。",
    picture: "带 {0} 个检测框的图片",
    boxAt: "{0}，像素 ({1}, {2}) 至 ({3}, {4})",
    unnamed: "未命名",
    notPicture: "{0} 不是本浏览器能显示的图片，请使用 PNG、JPEG、WebP 或 GIF。",
    tooLarge: "{0} 为 {1} MB，上限是 {2} MB。",
    tooMany: "一次对话最多 {0} 张图片。",
    offline: "无法连接服务器，它还在运行吗？",
    keyNeeded: "服务器需要 API 密钥，请在设置中填写。",
    broken: "连接中断，回答未完成。",
    failed: "服务器返回错误 {0}。",
    exampleLocate: "找出绿色的三角形",
    exampleCount: "有几颗红色的星星？",
    exampleChart: "Oslo 的数值是多少？",
    exampleRead: "图片上写着什么？",
    themeAuto: "主题：跟随系统",
    themeLight: "主题：浅色",
    themeDark: "主题：深色",
  },
};

let language = "en";

/** Choose a language: the stored one, else the browser's. */
export function initialLanguage() {
  const stored = localStorage.getItem("vl2.language");
  if (stored in WORDS) return stored;
  return navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en";
}

export function currentLanguage() {
  return language;
}

/** Return the words of a key. {0} stands for the first value; {0|tile|tiles} for it and the form that goes with it. */
export function say(key, ...values) {
  const text = WORDS[language][key] ?? WORDS.en[key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  return text.replace(/\{(\d)(?:\|([^|}]*)\|([^}]*))?\}/g, (_, index, one, other) => {
    const value = values[index];
    return one === undefined ? value : `${value} ${value === 1 ? one : other}`;
  });
}

/** Show the page in a language that a person chose, now and when it is opened again. */
export function chooseLanguage(name) {
  localStorage.setItem("vl2.language", name);
  setLanguage(name);
}

/** Show the page in a language. */
export function setLanguage(name) {
  language = name;
  document.documentElement.lang = name === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-i18n]")) element.textContent = say(element.dataset.i18n);
  for (const element of document.querySelectorAll("[data-i18n-title]")) {
    element.title = say(element.dataset.i18nTitle);
    element.setAttribute("aria-label", element.title);
  }
  for (const element of document.querySelectorAll("[data-i18n-label]")) {
    element.setAttribute("aria-label", say(element.dataset.i18nLabel));
  }
}
