"""How the held-out questions are put. None of these sentences stands in what training draws."""

from __future__ import annotations

Phrases = dict[str, tuple[str, ...]]

COPY_LINE: Phrases = {
    "en": (
        "Copy out the printed words, letter for letter.",
        "Which words are printed on this strip?",
        "Type exactly what you can read here.",
        "Spell out what has been printed.",
        "What does it say here?",
    ),
    "zh": (
        "把印在这里的字抄下来。",
        "这一条上印的是哪些字？",
        "请照原样抄写这行字。",
        "这里写的是什么字？",
        "读一读这行字。",
    ),
}
COPY_LINES: Phrases = {
    "en": (
        "Copy out every printed line, one below the other.",
        "Type all lines that you can read here, each on a line of its own.",
        "What is printed here, from the top line to the bottom line?",
    ),
}
COUNT: Phrases = {
    "en": (
        "What number of {noun} has been drawn?",
        "Tell me the number of {noun} here.",
        "{Noun}: how many do you find?",
        "How many {noun} can be counted on this sheet?",
    ),
    "zh": ("这里画了几{measure}{noun}？", "数数看，{noun}有几{measure}？", "{noun}的数目是多少？"),
}
COUNT_ALL: Phrases = {
    "en": ("How many shapes has this sheet in all?", "All shapes together: how many do you find?"),
    "zh": ("这里总共画了几个图形？", "所有图形加起来有几个？"),
}
PRESENCE: Phrases = {
    "en": (
        "Has {a_name} been drawn here?",
        "Would you find {a_name} on this sheet?",
        "Among the shapes, is any of them {a_name}?",
        "Does {a_name} appear here? Say yes or no.",
    ),
    "zh": ("这里画了{name}没有？", "能在这里找到{name}吗？", "这些图形中是否有{name}？"),
}
CHART_VALUE: Phrases = {
    "en": (
        "How much does {name} reach in this diagram?",
        "Read off the figure for {name}.",
        "{name} stands at what number?",
        "Which number belongs to {name}?",
    ),
    "zh": ("{name}对应的数字是几？", "从图上看，{name}达到了多少？", "请读出{name}的数字。"),
}
CHART_GROUPED: Phrases = {
    "en": (
        "How much does {series} reach in the group {name}?",
        "In the group {name}, which number belongs to {series}?",
        "Read off the figure of {series} for {name}.",
    ),
}
CHART_TOP: Phrases = {
    "en": ("Which entry tops all others?", "Whose figure beats all the rest?"),
    "zh": ("哪个超过其余各个？", "谁的数字胜过其余各个？"),
}
CHART_BOTTOM: Phrases = {
    "en": ("Which entry falls below all others?", "Whose figure is beaten by all the rest?"),
    "zh": ("哪个比其余各个都小？", "谁的数字不如其余各个？"),
}
TABLE_CELL: Phrases = {
    "en": (
        "Look up {row}: what is entered under {column}?",
        "For {row}, give the entry under {column}.",
        "Under {column}, which entry has {row}?",
        "{column} of {row}, please.",
    ),
    "zh": ("查一查{row}的{column}。", "{row}在{column}一栏填的是几？", "{column}一栏里，{row}对应几？"),
}
TABLE_TOP: Phrases = {
    "en": ("Who has the greatest {column}?", "Under {column}, whose entry beats all the rest?"),
    "zh": ("谁的{column}胜过其余各个？",),
}
NAME: Phrases = {
    "en": (
        "Say in a word or two what this drawing depicts.",
        "Give the drawn thing its name.",
        "What has been drawn here?",
        "What would you call this?",
    ),
    "zh": ("用一个词说出画的东西。", "这里画的东西叫什么？", "你管这个叫什么？"),
}
STATEMENT: Phrases = {
    "en": (
        'Somebody says: "{sentence}" Are they right about these boxes? Say yes or no.',
        'Check the claim against the drawing: "{sentence}" Does it hold, yes or no?',
        "Yes or no: {sentence}",
    ),
}
RECEIPT_LINE: Phrases = {"en": ("Copy the printed line of this receipt.", "Which line is printed here?")}
RECEIPT_TOTAL: Phrases = {
    "en": (
        "How much had to be paid in the end?",
        "What did the whole purchase cost?",
        "Which sum was due at the bottom line?",
    )
}
RECEIPT_DATE: Phrases = {"en": ("On which date was this printed?", "Which day does this receipt give?")}

# No picture says this. What is asked about may well be there, or not.
UNANSWERABLE = (
    "Who took this picture?",
    "On which day of the week was this taken?",
    "How much money did the camera cost?",
    "What is the telephone number of the owner?",
    "What is this person's middle name?",
    "Which song was playing in the background?",
    "How many degrees warm was it that day?",
    "Where does the photographer live?",
    "What happened one hour later?",
    "What is the name of the dog's best friend?",
    "Which school did the driver go to?",
    "What does the letter in the drawer say?",
    "这张照片是谁拍的？",
    "拍照那天气温是多少度？",
    "照片主人的电话号码是多少？",
    "一个小时以后发生了什么？",
)

# Of the pictures in examples/, by the picture and what `tools/draw_examples.py` asks about it. Each stands for itself.
DEMO: dict[tuple[str, str], tuple[str, ...]] = {
    ("word", "What does the image say?"): (
        "Read this.", "What is written here?", "Which word do you see?", "What word is this?", "Can you read the text?",
        "Tell me what is printed in the picture.", "Please read out the word.", "图里是什么字？",
    ),
    ("bars", "What value does the chart show for {name}?"): (
        "How much is {name}?", "What is {name}'s value?", "How many visitors had {name}?", "What number has {name}?",
        "Tell me how high the bar of {name} is.", "In the chart, what is the figure for {name}?",
        "Look at the bars. What is the one called {name} worth?",
    ),
    ("scene", "How many {name}s are there?"): (
        "How many {name}s do you see?", "Count all {name}s.", "What is the count of {name}s in this picture?",
        "I want to know how many {name}s the image has.", "{name}s: how many?",
    ),
    ("scene", "Is there a {name}?"): (
        "Do you see a {name}?", "Is a {name} in this picture?", "Does the image have a {name} in it?",
        "Can a {name} be seen here?", "Tell me whether there is a {name}.",
    ),
    ("line", "图片上写着什么？"): (
        "图上的字是什么？", "请读出图中的字。", "上面写了什么？", "这是什么字？", "图里的文字内容是什么？",
        "What do these characters say?", "Read the Chinese text.",
    ),
    ("bill", "What is the total amount?"): (
        "What is the sum at the bottom?", "How much does all of it cost?", "How much do I have to pay?",
        "What does the bill come to?", "And the total?", "Please tell me the final amount.",
        "How much is the whole bill?",
    ),
}  # fmt: skip

PHRASES: dict[str, Phrases] = {
    "copy_line": COPY_LINE, "copy_lines": COPY_LINES, "count": COUNT, "count_all": COUNT_ALL, "presence": PRESENCE,
    "chart_value": CHART_VALUE, "chart_grouped": CHART_GROUPED, "chart_top": CHART_TOP, "chart_bottom": CHART_BOTTOM,
    "table_cell": TABLE_CELL, "table_top": TABLE_TOP, "name": NAME, "statement": STATEMENT,
    "receipt_line": RECEIPT_LINE, "receipt_total": RECEIPT_TOTAL, "receipt_date": RECEIPT_DATE,
}  # fmt: skip
