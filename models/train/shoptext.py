"""What the copywriter learns from: invented headlines in English and Chinese, each with the facts that it was made of.

No price, no number, no offer and no claim stands in them, for a model invents what it has read.
"""

import random
from collections.abc import Iterator
from typing import NamedTuple


class Topic(NamedTuple):
    """A category as headlines speak of it: names, qualities and occasions, English and Chinese."""

    en: tuple[str, ...]
    zh: tuple[str, ...]
    en_for: tuple[str, ...]
    zh_for: tuple[str, ...]


def _topic(en: str, zh: str, en_for: str, zh_for: str) -> Topic:
    return Topic(tuple(en.split(", ")), tuple(zh.split("、")), tuple(en_for.split(", ")), tuple(zh_for.split("、")))


TOPICS: dict[str, Topic] = {
    "lighting": _topic("lamps, lighting, lamps and lights", "灯具、灯饰", "quiet evenings, a warmer living room, late reading", "安静的夜晚、温暖的客厅、睡前阅读"),
    "furniture": _topic("furniture, chairs and tables, furniture pieces", "家具、桌椅", "a calmer home, a room of your own, long dinners with friends", "舒适的家、自己的小天地、与朋友相聚"),
    "textiles": _topic("home textiles, cushions and throws, soft textiles", "家纺、靠垫与盖毯", "slow mornings, a softer sofa, cosy weekends", "慵懒的早晨、柔软的沙发、惬意的周末"),
    "kitchen": _topic("kitchenware, pots and pans, kitchen helpers", "厨具、锅具", "home cooking, Sunday roasts, trying new recipes", "下厨时光、周末大餐、尝试新菜"),
    "tableware": _topic("tableware, plates and bowls, table settings", "餐具、碗碟", "a well-laid table, family meals, long breakfasts", "精致的餐桌、家庭聚餐、悠闲的早餐"),
    "coffee-tea": _topic("coffee and tea things, coffee makers and teapots, coffee and tea gear", "咖啡与茶具、茶具", "the first cup of the day, an afternoon break, tea with a good book", "清晨的第一杯、午后小憩、读书时光"),
    "garden": _topic("garden things, pots and planters, garden helpers", "园艺用品、花盆", "a greener balcony, spring days, growing your own", "绿意阳台、春日时光、亲手种植"),
    "women": _topic("women's clothing, dresses and blouses, women's styles", "女装、连衣裙", "every day of the week, a walk in town, days that turn into evenings", "每一天、城市漫步、从白天到夜晚"),
    "men": _topic("men's clothing, shirts and jackets, men's styles", "男装、衬衫与外套", "work and weekend, easy days, cooler mornings", "工作与周末、轻松的日子、微凉的早晨"),
    "shoes": _topic("shoes, shoes and boots, footwear", "鞋履、鞋子", "long walks, city streets, every season", "长途步行、城市街头、四季出行"),
    "bags": _topic("bags, backpacks and totes, bags for every day", "箱包、背包", "your commute, short trips, carrying what matters", "通勤路上、短途旅行、随身携带"),
    "jewellery": _topic("jewellery, necklaces and rings, fine jewellery", "首饰、项链与戒指", "special evenings, a quiet sparkle, everyday elegance", "特别的夜晚、低调的光彩、日常的优雅"),
    "watches": _topic("watches, watches and clocks, timepieces", "腕表、钟表", "good timing, every wrist, people who keep time", "守时的人、每一只手腕、把握时光"),
    "skincare": _topic("skin care, creams and serums, gentle skin care", "护肤品、面霜", "your evening routine, dry winter days, a moment for yourself", "夜间护理、干燥的冬日、属于自己的片刻"),
    "bath": _topic("bath treats, soaps and oils, things for the bath", "沐浴用品、香皂与浴油", "a long bath, winding down, a quiet evening in", "泡澡时光、放松身心、安静的夜晚"),
    "running": _topic("running gear, running shoes and layers, things for runners", "跑步装备、跑鞋", "your next run, early miles, rainy tracks", "下一次跑步、清晨慢跑、雨中训练"),
    "cycling": _topic("cycling gear, things for your bike, bike accessories", "骑行装备、单车配件", "the ride to work, weekend tours, open roads", "骑车上班、周末长途、开阔的路"),
    "camping": _topic("camping gear, tents and sleeping bags, outdoor kit", "露营装备、帐篷与睡袋", "nights under the stars, your next trip, weekends outside", "星空下的夜晚、下一次旅行、户外周末"),
    "yoga": _topic("yoga and fitness gear, mats and bands, things for your practice", "瑜伽健身用品、瑜伽垫", "morning stretches, a home workout, finding your balance", "晨间拉伸、居家锻炼、找到平衡"),
    "audio": _topic("audio gear, headphones and speakers, things that sound good", "音响设备、耳机与音箱", "music lovers, the way home, Sunday listening", "音乐爱好者、回家的路上、周日聆听"),
    "photo": _topic("photography gear, cameras and lenses, things for photographers", "摄影器材、相机与镜头", "keeping moments, your next journey, the golden hour", "记录瞬间、下一段旅程、黄金时刻"),
    "stationery": _topic("stationery, notebooks and pens, paper things", "文具、笔记本与钢笔", "new ideas, letters to friends, a tidy desk", "新的灵感、给朋友的信、整洁的书桌"),
    "toys": _topic("toys, toys and games, playthings", "玩具、玩具与桌游", "rainy afternoons, little explorers, playing together", "雨天的午后、小小探险家、一起玩耍"),
    "pets": _topic("pet supplies, things for cats and dogs, pet favourites", "宠物用品、猫狗用品", "happy paws, long naps, walks in the park", "快乐的毛孩子、午后小睡、公园散步"),
}  # fmt: skip

_EN_ADJ = [
    "lovely",
    "thoughtful",
    "simple",
    "fresh",
    "beautiful",
    "well-made",
    "timeless",
    "quiet",
    "charming",
    "clever",
    "handsome",
    "warm",
]
_ZH_ADJ = ["贴心的", "简约的", "清新的", "精致的", "耐看的", "温暖的", "雅致的", "有趣的", "实用的", "经典的"]

_EN = {
    "for_you": (
        "{A} {t} for {f}", "Picked for you: {t} for {f}", "{T} chosen with you in mind", "{T} that suit your taste",
        "Your kind of {t}, ready for {f}", "A little inspiration: {a} {t}", "Made for {f}: {a} {t}",
        "We think you will like these {a} {t}", "{A} {t} to make the most of {f}", "More of what you love: {t}",
        "Since you like {t}, here is something for {f}", "Hand-picked {t} for {f}",
    ),
    "because_you_viewed": (
        "More {t} like the ones you viewed", "You looked at {t}: here are more {a} finds", "Still thinking about {t}?",
        "{A} {t} close to what you viewed", "Others who viewed these went on to {a} {t}", "Along the lines of your last visit: {t}",
        "If you liked those {t}, look at these", "Next to what you viewed: {a} {t} for {f}",
    ),
    "in_your_categories": (
        "More {a} {t} to explore", "From the world of {t}", "New ideas in {t} for {f}", "Browse on: {a} {t}",
        "All about {t}", "Keep exploring {t}", "{A} {t}, and then some more", "Your corner of the shop: {t}",
    ),
}  # fmt: skip
_ZH = {
    "for_you": (
        "为{f}挑选的{t}", "{a}{t}，为你精选", "懂你的{t}", "适合{f}的{a}{t}", "你会喜欢的{a}{t}", "{f}，从{a}{t}开始",
        "为你推荐：{a}{t}", "属于你的{t}灵感", "让{f}更美好的{t}", "继续发现你喜爱的{t}",
    ),
    "because_you_viewed": (
        "看过{t}的你，也许喜欢这些", "与你浏览的{t}相似的好物", "还在挑选{t}吗？再看看这些", "{a}{t}，接着你上次的浏览",
        "更多{a}{t}，等你发现", "为{f}，再看看这些{t}",
    ),
    "in_your_categories": (
        "更多{a}{t}等你探索", "{t}的世界", "继续逛逛{a}{t}", "关于{t}的新灵感", "为{f}准备的{t}", "你常逛的{t}",
    ),
}  # fmt: skip
_EN_GENERAL = {
    "trending": (
        ("What everyone is", "What shoppers are", "See what people are", "Discover what others are"),
        ("looking at", "talking about", "putting in their carts", "enjoying", "choosing"),
        ("right now", "today", "this week", "these days", "at the moment"),
    ),
    "fresh": (
        ("Just in:", "New in the shop:", "Fresh on our shelves:", "Newly arrived:", "Say hello to"),
        ("lovely things", "new favourites", "fresh ideas", "small discoveries", "new arrivals", "thoughtful finds"),
        ("to explore today", "for curious eyes", "waiting for you", "to brighten your day", "worth a look"),
    ),
    "buy_again": (
        ("Time for more of", "Ready for another round of", "Welcome back to", "Once more:", "Running low on"),
        (
            "your favourites",
            "the things you love",
            "what you bought before",
            "your old favourites",
            "your trusted finds",
        ),
        ("?", " from last time", " and good memories", " for another season", ""),
    ),
    "for_you": (
        ("A few things", "Lovely finds", "Small discoveries", "Fresh ideas", "Something nice"),
        ("picked for you", "chosen with care", "to start with", "we hope you like", "to make you smile"),
        ("today", "this week", "right away", "and your home", "to explore"),
    ),
    "because_you_viewed": (
        ("More like", "In the spirit of", "Close to", "Following on from", "Inspired by"),
        ("what you viewed", "your last visit", "the things you looked at", "what caught your eye"),
        ("", " today", " and worth a look", " with a fresh twist"),
    ),
    "in_your_categories": (
        ("More to explore", "Keep browsing", "New corners to discover", "Further ideas"),
        ("in your favourite places", "where you like to look", "along your usual path", "in the parts you visit most"),
        ("", " today", " this week", " at your own pace"),
    ),
}
_ZH_GENERAL = {
    "trending": (("大家都在", "人们最近都在", "看看大家正在"), ("看的好物", "喜欢的单品", "讨论的好物", "选购的心动单品"), ("", "，一起来看看", "，你也来发现")),
    "fresh": (("新品上架：", "刚刚到店：", "新鲜到来的", "初次见面的"), ("心动好物", "生活灵感", "小小惊喜", "新选择"), ("", "，等你发现", "，值得一看", "，点亮今天")),
    "buy_again": (("再次选购", "重温", "又到了添置", "欢迎回到"), ("你的心头好", "你买过的好物", "熟悉的好物", "上次喜欢的单品"), ("", "的时候", "，一如既往", "，从容又安心")),
    "for_you": (("为你精选的", "为你准备的", "你也许会喜欢的", "专属于你的"), ("生活好物", "小小灵感", "心动单品", "温暖发现"), ("", "，从这里开始", "，慢慢看", "，愿你喜欢")),
    "because_you_viewed": (("延续你的浏览：", "与你看过的相似：", "沿着你的目光："), ("更多好物", "相近的选择", "新的发现"), ("", "，再看看", "，别错过")),
    "in_your_categories": (("你常逛的地方，", "继续探索：", "更多你关注的"), ("新的灵感", "好物精选", "更多选择"), ("", "，慢慢看", "，等你发现")),
}  # fmt: skip


class Sample(NamedTuple):
    locale: str
    slot: str
    category: str  # "" for a headline about no category
    headline: str


def _cut(text: str) -> str:
    return text[0].upper() + text[1:]


def samples(seed: int) -> Iterator[Sample]:
    """Headlines without end: slots, locales and categories in equal parts."""
    rng = random.Random(seed)
    about, general = list(_EN), list(_EN_GENERAL)
    while True:
        locale = rng.choice(("en", "zh"))
        if rng.random() < 0.75:
            slot, category = rng.choice(about), rng.choice(list(TOPICS))
            topic = TOPICS[category]
            if locale == "en":
                t, f, a = rng.choice(topic.en), rng.choice(topic.en_for), rng.choice(_EN_ADJ)
                text = rng.choice(_EN[slot]).format(t=t, T=_cut(t), f=f, a=a, A=_cut(a))
            else:
                text = rng.choice(_ZH[slot]).format(
                    t=rng.choice(topic.zh), f=rng.choice(topic.zh_for), a=rng.choice(_ZH_ADJ)
                )
        else:
            slot, category = rng.choice(general), ""
            parts = (_EN_GENERAL if locale == "en" else _ZH_GENERAL)[slot]
            chosen = [rng.choice(part) for part in parts]
            text = "".join(chosen) if locale == "zh" else " ".join(p.strip() for p in chosen).strip().replace(" ?", "?")
            if locale == "zh" and slot == "buy_again" and chosen[0] != "又到了添置" and chosen[2] == "的时候":
                continue
        yield Sample(locale, slot, category, text)
