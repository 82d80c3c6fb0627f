"""The demo's shop: a few thousand invented items in English and Chinese, the same for the same seed.

A title is a style word, a trait and a noun: "Rustic Oak Bookshelf", 田园橡木书架. Each style word belongs to one of six
styles, which all categories share. No field of an item names its style; only simulated shoppers may call `style_of`.
"""

from typing import Any, NamedTuple

import numpy as np

from stream.times import rfc3339_us

Pairs = tuple[tuple[str, str], ...]  # (English, Chinese)
Item = dict[str, Any]  # the fields of schema item/1
DAY = 86_400.0


class Category(NamedTuple):
    id: str
    en: str
    zh: str
    prices: tuple[float, float]  # EUR; 90% of the items are within this range
    traits: Pairs
    nouns: Pairs


def _pairs(text: str) -> Pairs:
    return tuple((en.strip(), zh.strip()) for en, zh in (pair.split("=") for pair in text.split(",")))


def _category(id: str, en: str, zh: str, low: float, high: float, traits: str, nouns: str) -> Category:
    return Category(id, en, zh, (low, high), _pairs(traits), _pairs(nouns))


STYLES: dict[str, Pairs] = {
    "minimal": _pairs("Plain=素色,Slim=纤薄,Simple=简约,Quiet=静谧,Clean=清爽,Pure=纯净"),
    "rustic": _pairs("Rustic=田园,Cosy=温馨,Country=乡村,Weathered=做旧,Homely=居家,Handmade=手工"),
    "retro": _pairs("Retro=复古,Vintage=古董风,Classic=经典,Heritage=传承,Antique=仿古,Timeless=隽永"),
    "sporty": _pairs("Sporty=运动,Active=活力,Rugged=耐用,Swift=轻快,Bold=醒目,Trail=越野"),
    "elegant": _pairs("Elegant=优雅,Refined=精致,Graceful=雅致,Velvet=丝绒感,Royal=华贵,Polished=亮面"),
    "playful": _pairs("Playful=童趣,Sunny=阳光,Colourful=多彩,Cheerful=欢快,Dotted=波点,Candy=糖果色"),
}

TAXONOMY: tuple[Category, ...] = (
    _category(
        "lighting", "Lighting", "灯具", 19, 180,
        "Brass=黄铜,Walnut=胡桃木,Linen=亚麻,Glass=玻璃,Paper=纸艺",
        "Desk Lamp=台灯,Floor Lamp=落地灯,Pendant Light=吊灯,Wall Light=壁灯,Night Light=小夜灯,"
        "Reading Lamp=阅读灯,Lantern=提灯,String Lights=串灯",
    ),
    _category(
        "furniture", "Furniture", "家具", 60, 700,
        "Oak=橡木,Walnut=胡桃木,Birch=桦木,Rattan=藤编,Steel=钢制",
        "Bookshelf=书架,Coffee Table=茶几,Armchair=扶手椅,Stool=凳子,Sideboard=边柜,Desk=书桌,Bench=长凳,Coat Rack=衣帽架",
    ),
    _category(
        "textiles", "Home Textiles", "家纺", 12, 140,
        "Cotton=纯棉,Linen=亚麻,Waffle=华夫格,Bamboo=竹纤维,Quilted=绗缝",
        "Cushion=靠垫,Throw=盖毯,Duvet Cover=被套,Curtain=窗帘,Rug=地毯,Towel Set=毛巾套装,Tablecloth=桌布,Pillow=枕头",
    ),
    _category(
        "kitchen", "Kitchen", "厨具", 9, 160,
        "Cast Iron=铸铁,Copper=紫铜,Steel=不锈钢,Hammered=锤纹,Enamel=珐琅",
        "Frying Pan=煎锅,Saucepan=奶锅,Grill Pan=烤盘,Stock Pot=汤锅,Mixing Bowl=调理碗,Casserole=炖锅,"
        "Kettle=水壶,Ladle=汤勺",
    ),
    _category(
        "tableware", "Tableware", "餐具", 8, 95,
        "Porcelain=瓷制,Stoneware=炻器,Glass=玻璃,Speckled=斑点,Glazed=釉面",
        "Dinner Plate=餐盘,Soup Bowl=汤碗,Mug=马克杯,Teapot=茶壶,Serving Dish=上菜盘,Salad Bowl=沙拉碗,"
        "Carafe=水瓶,Milk Jug=奶壶",
    ),
    _category(
        "coffee-tea", "Coffee & Tea", "咖啡与茶", 6, 220,
        "Ceramic=陶瓷,Steel=不锈钢,Glass=玻璃,Compact=便携,Copper=紫铜",
        "Coffee Grinder=磨豆机,French Press=法压壶,Pour-Over Set=手冲套装,Espresso Maker=意式咖啡机,Tea Set=茶具,"
        "Milk Frother=奶泡器,Travel Mug=随行杯,Tea Tin=茶叶罐",
    ),
    _category(
        "garden", "Garden", "园艺", 7, 190,
        "Zinc=锌制,Painted=彩绘,Large=大号,Little=小号,Frost-Proof=防冻",
        "Flower Pot=花盆,Watering Can=洒水壶,Garden Chair=庭院椅,Plant Stand=花架,Bird House=鸟屋,Pruning Shears=修枝剪,"
        "Hanging Planter=吊篮花盆,Garden Light=庭院灯",
    ),
    _category(
        "women", "Women's Clothing", "女装", 19, 230,
        "Cotton=纯棉,Silk=真丝,Wool=羊毛,Linen=亚麻,Knitted=针织",
        "Dress=连衣裙,Blouse=衬衫,Cardigan=开衫,Skirt=半身裙,Trousers=长裤,Coat=大衣,Sweater=毛衣,Jacket=外套",
    ),
    _category(
        "men", "Men's Clothing", "男装", 19, 230,
        "Cotton=纯棉,Denim=牛仔,Wool=羊毛,Linen=亚麻,Flannel=法兰绒",
        "Shirt=衬衫,T-Shirt=T恤,Chinos=卡其裤,Pullover=套头衫,Parka=派克大衣,Waistcoat=马甲,Polo Shirt=POLO衫,Blazer=西装外套",
    ),
    _category(
        "shoes", "Shoes", "鞋履", 29, 240,
        "Leather=皮革,Canvas=帆布,Suede=绒面,Mesh=网面,Waterproof=防水",
        "Sneakers=板鞋,Ankle Boots=短靴,Loafers=乐福鞋,Sandals=凉鞋,Slippers=拖鞋,Walking Shoes=健步鞋,"
        "Ballet Flats=芭蕾平底鞋,Oxfords=牛津鞋",
    ),
    _category(
        "bags", "Bags", "箱包", 19, 260,
        "Leather=皮革,Canvas=帆布,Nylon=尼龙,Waxed=蜡布,Recycled=再生面料",
        "Backpack=双肩包,Tote Bag=托特包,Messenger Bag=邮差包,Suitcase=行李箱,Wallet=钱包,Belt Bag=腰包,"
        "Weekender=旅行袋,Laptop Sleeve=电脑包",
    ),
    _category(
        "jewellery", "Jewellery", "首饰", 15, 420,
        "Silver=银制,Gold-Plated=镀金,Pearl=珍珠,Amber=琥珀,Jade=玉石",
        "Necklace=项链,Earrings=耳环,Bracelet=手链,Ring=戒指,Brooch=胸针,Pendant=吊坠,Hair Clip=发夹,Anklet=脚链",
    ),
    _category(
        "watches", "Watches", "腕表", 35, 480,
        "Steel=精钢,Brass=黄铜,Small=小号,Large=大号,Titanium=钛金属",
        "Dress Watch=正装表,Field Watch=野战表,Diver Watch=潜水表,Pocket Watch=怀表,Chronograph=计时码表,"
        "Travel Clock=旅行钟,Wall Clock=挂钟,Alarm Clock=闹钟",
    ),
    _category(
        "skincare", "Skin Care", "护肤", 7, 90,
        "Rose=玫瑰,Green Tea=绿茶,Oat=燕麦,Aloe=芦荟,Honey=蜂蜜",
        "Face Cream=面霜,Hand Cream=护手霜,Facial Cleanser=洁面乳,Face Mask=面膜,Body Lotion=身体乳,Lip Balm=润唇膏,"
        "Face Serum=精华液,Toner=爽肤水",
    ),
    _category(
        "bath", "Bath", "沐浴", 5, 70,
        "Lavender=薰衣草,Sea Salt=海盐,Citrus=柑橘,Charcoal=竹炭,Sandalwood=檀香",
        "Bar Soap=香皂,Bath Bomb=浴球,Shower Gel=沐浴露,Shampoo Bar=洗发皂,Bath Oil=沐浴油,Scented Candle=香薰蜡烛,"
        "Hand Wash=洗手液,Room Diffuser=室内香薰",
    ),
    _category(
        "running", "Running", "跑步", 12, 190,
        "Light=轻量,Reflective=反光,Breathable=透气,Windproof=防风,Cushioned=缓震",
        "Running Shoes=跑鞋,Running Shorts=跑步短裤,Running Vest=跑步背心,Headband=发带,Hydration Belt=水壶腰带,"
        "Running Socks=跑步袜,Running Jacket=跑步外套,Arm Pouch=臂包",
    ),
    _category(
        "cycling", "Cycling", "骑行", 9, 260,
        "Waterproof=防水,Reflective=反光,Light=轻量,City=城市,Touring=长途",
        "Bike Helmet=骑行头盔,Bike Light=自行车灯,Saddle=车座,Pannier=驮包,Cycling Gloves=骑行手套,Bike Bell=车铃,"
        "Cycling Jersey=骑行服,Bike Lock=车锁",
    ),
    _category(
        "camping", "Camping", "露营", 12, 390,
        "Ultralight=超轻,Compact=便携,Waterproof=防水,Family=家庭,All-Season=四季",
        "Tent=帐篷,Sleeping Bag=睡袋,Camping Stove=露营炉,Camp Chair=露营椅,Hammock=吊床,Headlamp=头灯,"
        "Cool Box=保温箱,Picnic Blanket=野餐垫",
    ),
    _category(
        "yoga", "Yoga & Fitness", "瑜伽健身", 8, 120,
        "Soft-Grip=软握,Travel=旅行,Studio=专业,Textured=防滑纹,Starter=入门",
        "Yoga Mat=瑜伽垫,Yoga Block=瑜伽砖,Resistance Band=弹力带,Foam Roller=泡沫轴,Dumbbell=哑铃,Skipping Rope=跳绳,"
        "Kettlebell=壶铃,Meditation Cushion=冥想坐垫",
    ),
    _category(
        "audio", "Audio", "音响", 19, 390,
        "Wireless=无线,Wooden=木质,Portable=便携,Compact=小巧,Studio=录音室",
        "Headphones=头戴耳机,Earbuds=耳塞,Speaker=音箱,Turntable=黑胶唱机,Soundbar=回音壁,Radio=收音机,"
        "Microphone=麦克风,Music Player=音乐播放器",
    ),
    _category(
        "photo", "Photography", "摄影", 12, 640,
        "Compact=便携,Leather-Trimmed=皮饰,Travel=旅行,Studio=影棚,Pocket=口袋",
        "Camera=相机,Tripod=三脚架,Camera Bag=相机包,Lens=镜头,Camera Strap=相机背带,Photo Album=相册,"
        "Picture Frame=相框,Photo Printer=照片打印机",
    ),
    _category(
        "stationery", "Stationery", "文具", 3, 60,
        "Leather=皮革,Recycled=环保,Pocket=口袋,Office=办公,Travel=旅行",
        "Notebook=笔记本,Fountain Pen=钢笔,Pencil Case=笔袋,Desk Organiser=桌面收纳,Planner=手账,Sketchbook=素描本,"
        "Letter Set=信纸套装,Calendar=日历",
    ),
    _category(
        "toys", "Toys", "玩具", 7, 110,
        "Wooden=木质,Painted=彩绘,Large=大号,Little=小号,Pocket=口袋",
        "Building Blocks=积木,Train Set=小火车,Stacking Tower=叠叠塔,Puzzle=拼图,Doll House=娃娃屋,Pull-Along Duck=拖拉小鸭,"
        "Spinning Top=陀螺,Board Game=桌游",
    ),
    _category(
        "pets", "Pets", "宠物", 5, 130,
        "Washable=可水洗,Natural=天然,Small=小号,Large=大号,Travel=旅行",
        "Dog Bed=狗窝,Cat Tree=猫爬架,Food Bowl=食盆,Dog Lead=牵引绳,Cat Toy=逗猫玩具,Pet Blanket=宠物毯,"
        "Carrier=宠物包,Scratching Post=猫抓板",
    ),
)  # fmt: skip

# Each brand covers a few neighbouring categories.
BRANDS = (
    "Alderway", "Birk & Fjord", "Calla", "Dunmore", "Estrel", "Fennhill", "Gallin", "Halden", "Ilverton", "Juno Lane",
    "Kestrel", "Lumora", "Marlo", "Nordvik", "Oakline", "Pellworm", "Quill & Co", "Rivage", "Solsta", "Tamarin",
    "Umbra Nova", "Velden", "Wrenfield", "Xanthe", "Yarrow", "Zephyrine", "Qinghe", "Moli", "Yunshan", "Zhulin",
    "Hailan", "Xingye", "Songyin", "Baita", "Lanting", "Heming",
)  # fmt: skip

_DESCRIPTIONS = (
    ("{title} by {brand}, made to be used every day.", "{brand}出品的{title}，适合每天使用。"),
    ("{title} with an eye for detail, from {brand}.", "{brand}的{title}，注重细节。"),
    ("{title}, made by {brand} for many years of use.", "{brand}精心打造的{title}，经久耐用。"),
    ("{title}: well thought out, well made. By {brand}.", "{title}，设计用心，做工扎实，来自{brand}。"),
)
_STYLE_OF_WORD = {en: style for style, words in STYLES.items() for en, _zh in words}


def style_of(item: Item) -> str:
    """Return the hidden style of an item: the style of the first word of its English title."""
    return _STYLE_OF_WORD[item["title"]["en"].split()[0]]


def generate_shop(seed: int, n: int = 3000, *, now: float) -> list[Item]:
    """Return n plausible items of schema item/1, the same for the same arguments.

    Dates are relative to `now` (s since the epoch). A twelfth of the items was added in the last week. About 2% are
    sold out, 1% have expired and 1% expire within the next ten minutes.

    Raises ValueError if n is above 20,000, because titles must be distinct.
    """
    if n > 20_000:
        raise ValueError(f"there are not enough distinct titles for {n} items; use at most 20000")
    rng = np.random.default_rng([seed, 1])
    styles = tuple(STYLES)
    taken: set[str] = set()
    items: list[Item] = []
    while len(items) < n:
        number = int(rng.integers(len(TAXONOMY)))
        category = TAXONOMY[number]
        # Neighbouring categories share brands: each has six, one or two further along the list than the last.
        brand = BRANDS[(3 * number // 2 + int(rng.integers(6))) % len(BRANDS)]
        style = STYLES[styles[int(rng.integers(len(styles)))]][int(rng.integers(6))]
        trait = category.traits[int(rng.integers(len(category.traits)))]
        noun = category.nouns[int(rng.integers(len(category.nouns)))]
        title = {"en": f"{style[0]} {trait[0]} {noun[0]}", "zh": f"{style[1]}{trait[1]}{noun[1]}"}
        if title["en"] in taken:
            continue
        taken.add(title["en"])
        low, high = np.log(category.prices[0]), np.log(category.prices[1])
        price = float(np.exp(rng.normal((low + high) / 2, (high - low) / 3.3)))
        price = max(1.0, round(price)) - 0.1 if price < 100 else float(round(price / 5) * 5)
        age = rng.uniform(0.0, 7.0) if rng.random() < 1 / 12 else rng.uniform(7.0, 500.0)
        en, zh = _DESCRIPTIONS[int(rng.integers(len(_DESCRIPTIONS)))]
        draw = rng.random()
        expires = None
        if draw < 0.01:
            expires = now - rng.uniform(1.0, 60.0) * DAY
        elif draw < 0.02:
            expires = now + rng.uniform(20.0, 600.0)
        elif draw < 0.06:
            expires = now + rng.uniform(2.0, 90.0) * DAY
        item_id = f"SKU{len(items) + 1:05d}"
        items.append(
            {
                "item_id": item_id,
                "title": title,
                "description": {
                    "en": en.format(title=title["en"], brand=brand),
                    "zh": zh.format(title=title["zh"], brand=brand),
                },
                "category": category.id,
                "brand": brand,
                "price": round(price, 2),
                "currency": "EUR",
                "available": bool(rng.random() >= 0.02),
                "added_at": rfc3339_us(now - age * DAY),
                "expires_at": None if expires is None else rfc3339_us(expires),
                "url": f"https://shop.example/{category.id}/{item_id.lower()}",
            }
        )
    return items
