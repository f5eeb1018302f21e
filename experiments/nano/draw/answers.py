"""What is said where a picture does not tell."""

CANNOT_TELL = {"en": "I cannot tell from the picture.", "zh": "从图中看不出来。"}
ABSENT = {
    "en": ("There is no {name} in the picture.", "The picture shows no {name}."),
    "zh": ("图中没有{name}。",),
}
