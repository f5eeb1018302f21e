"""Words and texts for drawing: a small built-in collection in English and Chinese, or the user's text files."""

from __future__ import annotations

import random
from collections import Counter
from functools import lru_cache
from pathlib import Path

from vl2.errors import UserError
from vl2.synth.corpus import MARKERS, open_corpus

FIRST_NAMES = (
    "Anna", "Ben", "Carla", "David", "Elena", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kira", "Liam",
    "Maya", "Noah", "Olga", "Pablo", "Quinn", "Rosa", "Samir", "Tara", "Uma", "Victor", "Wanda", "Yusuf",
)  # fmt: skip
LAST_NAMES = (
    "Adams", "Becker", "Costa", "Dubois", "Evans", "Fischer", "Garcia", "Hughes", "Ivanov", "Jensen", "Kumar",
    "Lopez", "Moreau", "Novak", "Okafor", "Patel", "Quist", "Rossi", "Schmidt", "Tanaka", "Usman", "Walker",
)  # fmt: skip
NAMES_ZH = (
    "王伟", "李娜", "张敏", "刘洋", "陈静", "杨帆", "赵磊", "黄丽", "周杰", "吴芳", "徐明", "孙悦", "马超",
    "朱琳", "胡军", "郭涛", "何雪", "林峰", "高原", "罗兰",
)  # fmt: skip
CITIES = {
    "en": ("Lisbon", "Oslo", "Boston", "Leeds", "Perth", "Denver", "Madrid", "Vienna", "Dublin", "Toronto", "Cairo"),
    "zh": ("北京", "上海", "广州", "成都", "杭州", "西安", "南京", "武汉", "青岛", "昆明", "厦门"),
}
STREETS = ("Oak Street", "Mill Road", "High Street", "Park Avenue", "Station Road", "King Street", "Lake View")
SHOPS = {
    "en": (
        "Green Corner Market", "Sunrise Bakery", "Harbour Coffee", "City Hardware", "Blue Door Books", "Fresh & Fair",
        "Old Town Grocer", "Maple Pharmacy", "Riverside Deli", "Daily Needs", "North Star Stationery",
    ),
    "zh": (
        "好邻居超市", "晨光面包房", "海港咖啡", "城市五金店", "蓝门书店", "鲜果坊", "便民药房", "河畔小吃", "百味餐厅",
    ),
}  # fmt: skip
GOODS = {
    "en": (
        "Milk 1L", "Brown Bread", "Eggs x12", "Apples 1kg", "Orange Juice", "Green Tea", "Ground Coffee", "Butter",
        "Cheddar Cheese", "Tomatoes", "Rice 2kg", "Pasta", "Olive Oil", "Dark Chocolate", "Notebook A5", "Blue Pen",
        "Hand Soap", "Toothpaste", "Light Bulb", "Batteries AA", "Yoghurt", "Bananas", "Croissant", "Sandwich",
    ),
    "zh": (
        "牛奶", "面包", "鸡蛋", "苹果", "橙汁", "绿茶", "咖啡", "黄油", "奶酪", "西红柿", "大米", "面条", "花生油",
        "巧克力", "笔记本", "圆珠笔", "洗手液", "牙膏", "灯泡", "电池", "酸奶", "香蕉", "饼干", "豆腐", "酱油",
    ),
}  # fmt: skip
COMMON = {
    "en": (
        "water", "mountain", "bridge", "garden", "window", "library", "station", "evening", "morning", "village",
        "paper", "picture", "music", "forest", "summer", "winter", "teacher", "student", "kitchen", "market", "river",
        "island", "journey", "machine", "number", "question", "answer", "history", "science", "engine", "pilot",
        "silver", "golden", "quiet", "bright", "gentle", "narrow", "ancient", "modern", "simple", "northern", "distant",
        "SALE", "OPEN", "Exit", "Platform 9", "No Parking", "Room 204", "Gate B12", "Caution", "Push", "Ticket Office",
    ),
    "zh": (
        "山水", "桥梁", "花园", "窗户", "图书馆", "车站", "傍晚", "早晨", "村庄", "纸张", "图片", "音乐", "森林",
        "夏天",
        "冬天", "老师", "学生", "厨房", "市场", "河流", "岛屿", "旅行", "机器", "数字", "问题", "答案", "历史", "科学",
        "出口", "入口", "禁止停车", "小心地滑", "营业中", "售票处", "二号站台", "办公室", "请勿吸烟", "紧急出口",
    ),
}  # fmt: skip
PASSAGES = {
    "en": (
        "The library opens at nine in the morning and closes at six. Visitors may borrow up to five books for two "
        "weeks.",
        "A small boat crossed the bay before sunrise. By noon it had returned with a net full of silver fish.",
        "Iron expands when it is heated and contracts when it cools, which is why bridges have joints between their "
        "parts.",
        "Turn left at the old mill, follow the river for 3 kilometres, and you will see the tower on the hill.",
        "In 1969 two people walked on the Moon for the first time. They brought back 21.5 kilograms of rock.",
        "Bees visit about 4 million flowers to make one kilogram of honey; each bee makes less than a spoonful.",
        "Mix the flour with water, salt and yeast. Let the dough rest for one hour, then bake it at 220 degrees.",
        "\"Where does this road lead?\" asked the traveller. \"It depends,\" said the farmer, \"on how far you go.\"",
        "Our train leaves platform 7 at 14:35 and arrives at 18:10. Seats can be reserved for 4.50 per person.",
        "Light from the Sun needs about eight minutes to reach the Earth, and more than five hours to reach Pluto.",
    ),
    "zh": (
        "图书馆上午九点开门，下午六点关门。每位读者最多可以借五本书，借期为两个星期。",
        "一艘小船在日出之前驶过海湾。到了中午，它带着满满一网银色的鱼回来了。",
        "铁受热会膨胀，冷却时会收缩，所以桥梁的各个部分之间留有缝隙。",
        "在老磨坊向左转，沿着河走三公里，就能看见山上的塔。",
        "1969年，人类第一次登上月球，带回了21.5公斤的岩石。",
        "蜜蜂要采四百万朵花，才能酿出一公斤蜂蜜，而一只蜜蜂一生酿的蜜还不到一小勺。",
        "把面粉、水、盐和酵母混合均匀，让面团静置一个小时，然后放进烤箱烘烤。",
        "春天来了，院子里的桃树开满了粉红色的花，小鸟在枝头唱歌。",
        "列车14:35从七号站台出发，18:10到达终点，每个座位的预订费是4.50元。",
        "太阳光到达地球大约需要八分钟，到达冥王星则需要五个多小时。",
    ),
}  # fmt: skip

# A text file up to this size is read as a whole, so that each of its passages has the same chance.
WHOLE_FILE_BYTES = 1 << 25


@lru_cache(maxsize=16)
def read_passages(path: str) -> tuple[str, ...]:
    """Read a UTF-8 text file with one passage per line. Empty lines and passages with special tokens are skipped.

    Raise UserError if the file cannot be read or has no passage.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the texts {path}: {error}") from None
    kept = tuple(" ".join(line.split()) for line in lines if line.strip() and not any(m in line for m in MARKERS))
    if not kept:
        raise UserError(f"{path} holds no passage: a text file with one passage a line is needed")
    return kept


def choose_passage(rng: random.Random, language: str, path: str | None) -> str:
    """Return a random passage of a text file or a corpus, see `open_corpus`; None is the built-in passages."""
    if path is None:
        return rng.choice(PASSAGES[language])
    return rng.choice(read_passages(path)) if _is_small_text(path) else open_corpus(path).choose(rng)


@lru_cache(maxsize=16)
def _is_small_text(path: str) -> bool:
    place = Path(path)
    if place.is_dir() or place.suffix.lower() == ".parquet":
        return False
    return not place.is_file() or place.stat().st_size <= WHOLE_FILE_BYTES


@lru_cache(maxsize=4)
def read_characters(path: str, least: int) -> tuple[str, ...]:
    """Return the Chinese characters that occur at least `least` times in a file. Raise UserError if there are none."""
    counts = Counter(char for passage in read_passages(path) for char in passage if "一" <= char <= "鿿")
    found = tuple(sorted(char for char, count in counts.items() if count >= least))
    if not found:
        raise UserError(f"{path} has no Chinese character {least} times or more")
    return found


def name(rng: random.Random, language: str) -> str:
    """Return a random name of a person."""
    return rng.choice(NAMES_ZH) if language == "zh" else f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def address(rng: random.Random, language: str) -> str:
    city, number = rng.choice(CITIES[language]), rng.randint(1, 199)
    return f"{city}市人民路{number}号" if language == "zh" else f"{number} {rng.choice(STREETS)}, {city}"


def date(rng: random.Random, language: str) -> str:
    """Return a random date in one of the usual notations of the language."""
    year, month, day = rng.randint(2015, 2026), rng.randint(1, 12), rng.randint(1, 28)
    if language == "zh":
        return rng.choice((f"{year}年{month}月{day}日", f"{year}-{month:02d}-{day:02d}"))
    named = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")[month - 1]
    return rng.choice((f"{day:02d}/{month:02d}/{year}", f"{year}-{month:02d}-{day:02d}", f"{day} {named} {year}"))


def phone(rng: random.Random) -> str:
    return f"555-{rng.randint(0, 9999):04d}"
