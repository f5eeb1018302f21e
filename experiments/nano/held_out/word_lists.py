"""The words of the held-out pictures: those that `splits.is_test_word` keeps from training, and made-up names."""

from __future__ import annotations

from random import Random

_NOUNS = """
military period acid school rate army lithium script animal rule career altruism access landing decision
sector tradition building equipment property heat leader melting proton memory budget quantum security
county livestock amphibian satellite prey flag movie diversity sand mineral fossil player fishing sport
shift mouth treaty vision planning wealth conquest tactics sample bone valley judge bank shipping rocket
coastline trace soul officer duty flora infant cycle physicist nitrogen identity ancestor snake arrival
railway brick genome speaker debt demand terrain ring matrix geometry statue removal stock protocol burrow
sensation snowfall museum gift entity clade quarter deposit sunlight passenger fate scientist highway
fort abdomen gravel routine poll diesel singer opera zone hyena commerce expense custom kinship import brigade
patch skeleton numeral hierarchy ticket portrait zoology wisdom composer alloy shrine anthem capsule toad pond
grassland isomer oxide tube worker bypass attorney papyrus recall remedy chess expert monarch tadpole cord
protein filling rubber equator basalt infantry grammar employer tier episode counsel elephant integer
trait colleague mentor layout tripod cheese trout worm trigger delegate spine mane parking
"""
_ADJECTIVES = """
early important main free strong official foreign light primary wide chemical separate potential clear equal
advanced unique aquatic regular digital broad martial correct electric cold printed brief giant beautiful
surgical voluntary enormous noble informal soft hidden mutual vertical tall ultimate infinite juvenile
countless keen esoteric busy flexible riverine upright dorsal pale
"""
_VERBS = """
support process free create raise separate contain require bring link carry consider spend double retain speak
obtain attend acquire discuss reject explore convey settle declare embrace govern connect convince recall
refuse purify resist pave exceed conquer celebrate throw warn stretch
"""
_WORDS_ZH = """
系统 时期 革命 世纪 行政 心理 程序 分子 地球 大陆 原子 基础 量子 模式 农业 艺术 文学 居民 表演 道德
埃及 东北 能量 国民 司法 成果 化学 航空 石器 非洲 南岛 健康 黄河 宦官 符号 物种 农民 期望 努力 作者
君主 道路 足球 故事 公式 法官 报告 季风 风格 孩子 能源 生态 宪法 酒店 部门 论文 瑞典 团体 莫斯科 拼音
金牌 金属 遗产 群岛 立方 护卫 感官 市民 邮件 草地 网站 激光 诗歌 旋律 宣誓 匈牙利 书法 诗人 窑洞 父亲
河口 月球 太极 光速 专科 音色 雨水 重庆 身体 荷兰 码头 潮汐 沙发 文人 摔跤 喀什 商店 员工 千瓦 北美洲
北半球 儿童 象棋 脚本 海里 排球 弟子 市长 对数 奥斯陆 天气 发动机 伊朗
"""
NOUNS, ADJECTIVES, VERBS, WORDS_ZH = (tuple(text.split()) for text in (_NOUNS, _ADJECTIVES, _VERBS, _WORDS_ZH))
WORD_LISTS = {"nouns": NOUNS, "adjectives": ADJECTIVES, "verbs": VERBS, "words_zh": WORDS_ZH}

MADE_UP_SHARE = 1 / 3
_BEGINNINGS = ("Br", "Dr", "F", "Gl", "H", "J", "K", "L", "M", "N", "P", "Qu", "R", "Sk", "T", "Tr", "V", "W", "Z")
_VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "oo", "y")
_MIDDLES = ("b", "d", "g", "k", "l", "lm", "m", "n", "nd", "p", "r", "rv", "s", "st", "t", "v", "x", "z")
_ENDINGS = ("", "a", "ack", "el", "en", "er", "ia", "ik", "o", "on", "or", "us", "wick")


def made_up_name(rng: Random) -> str:
    """Return a name that can be spoken and that no list holds, such as "Trovik"."""
    parts = (_BEGINNINGS, _VOWELS, _MIDDLES, _ENDINGS)
    name = "".join(rng.choice(part) for part in parts)
    return name if len(name) > 3 else name + rng.choice("aeo")


def label(rng: Random, language: str, longest: int) -> str:
    """Return what one thing in a chart or a table is called: a word, or in English one time in three a made-up name."""
    while True:
        if language == "zh":
            name = rng.choice(WORDS_ZH)
        else:
            name = made_up_name(rng) if rng.random() < MADE_UP_SHARE else rng.choice(NOUNS).capitalize()
        if len(name) <= longest:
            return name


def labels(rng: Random, language: str, count: int, longest: int = 9) -> tuple[str, ...]:
    """Return names that differ."""
    found: dict[str, None] = {}
    while len(found) < count:
        found[label(rng, language, longest)] = None
    return tuple(found)
