"""The facts of a headline, and what a headline may say of the shop's own data.

Names of items and interests come from the shop's data, which may be strange or hostile. `allowed_names` and
`allowed_interest` return only those that a headline may show.
"""

import re
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

LOCALES = ("en", "zh")
MAX_NAME_CHARS = {"en": 40, "zh": 24}  # of an item's name in a headline
MAX_INTEREST_CHARS = {"en": 30, "zh": 12}
BANNED = re.compile(
    # Prices and offers.
    r"\b(?:free|sales?|discount\w*|offers?|offered|cheap\w*|deals?|sav(?:e|es|ed|ing|ings)|off|percent"
    r"|pric(?:e|es|ed|ing|ey)"
    r"|now only|limited|bargains?|clearance|coupons?|vouchers?|rebates?|refunds?|bogo|buy one|get one"
    r"|\d+ for \d+|giveaways?"
    r"|dollars?|euros?|yuan|usd|eur|gbp|rmb|cny"
    # Claims of rank.
    r"|best|better than|top.rated|unbeatable|ultimate|number one|no\. ?1|award\w*|exclusive\w*"
    r"|guarantee\w*|proven|perfect\w*"
    # Medical and legal claims.
    r"|cur(?:e|es|ed|ing)|heal(?:s|ed|ing|thy|thier)?|therap\w*|medic\w*|clinical\w*|doctors?|certified"
    r"|warrant\w*|legal\w*"
    r"|risk.?free|safest|detox\w*|slimming)\b"
    r"|免费|免税|免邮|免单|包邮|打折|折扣|折起|[一二三四五六七八九]折|优惠|特价|特惠|促销|降价|减价|满减|立减|秒杀|清仓|甩卖|券|赠|买.送"
    r"|返现|红包(?!括)|便宜|划算|超值|省钱|低价|价格|原价|现价|(?<!多)元(?![素气旦宵])|块钱|限时|限量"
    r"|最(?![近后初])|第一|顶级|国家级|唯一|绝对|极致|完美|全网|独家|保证|保障|认证|百分"
    r"|治疗|治愈|疗效|疗|药|医|根治|功效|养生|排毒|减肥|抗菌|抗衰|法律|合法|退款|质保",
    re.I,
)
_NOT_IN_NAME = re.compile(r"[^A-Za-zÀ-ɏ\u3400-\u9fff0-9 ,.'’&+/()\-·]")
_ADDRESS = re.compile(r"www\.|\.(?:com|net|org|info|shop|biz|io|cn|co|me|xyz|top)\b", re.I)
# A price or a stock number.
_FIGURE = re.compile(r"\d[.,]\d|\d{5}")
_SHOUTED = re.compile(r"(?:\b[A-Z]{2,}\b[^A-Za-z]*){3}")
CHINESE = re.compile(r"[\u3400-\u9fff]")


class Facts(NamedTuple):
    """The subject of a headline."""

    locale: str
    slot: str
    category: str  # a category id, or the shop's own words in either language; "" if there is none
    titles: tuple[str, ...] = ()  # of the leading items


def allowed_names(facts: Facts) -> list[str]:
    """Return the item names that a headline may say, without duplicates."""
    names = (_allowed(title, facts.locale, MAX_NAME_CHARS) for title in facts.titles)
    return list(dict.fromkeys(name for name in names if name))


def allowed_interest(category: str, locale: str) -> str:
    """Return how a headline may call a category that the lexicon does not know; "" if it may not be named.

    Of a path such as "Home > Kitchen" it is the last part; of an id such as "bird-watching" its words. As with names, a
    Chinese page may quote Latin letters ("cosplay"), but an English page shows nothing that its reader cannot read.
    """
    last = [part for part in re.split(r"[>/|]", category) if part.strip()]
    return _allowed(re.sub(r"[_\-]+", " ", last[-1]) if last else "", locale, MAX_INTEREST_CHARS)


def _allowed(text: str, locale: str, max_chars: Mapping[str, int]) -> str:
    """Return a text of the shop's data with single spaces; "" if a headline in this language may not say it."""
    name = " ".join(text.split())
    plain = unicodedata.normalize("NFKC", name)  # full-width digits and signs become ordinary ones
    if (
        len(name) > max_chars["zh" if CHINESE.search(name) else "en"]
        or len(re.findall(r"[A-Za-zÀ-ɏ]", name)) + 2 * len(CHINESE.findall(name)) < 2
        or not (name[0].isalnum() and (name[-1].isalnum() or name[-1] in ")+."))
        or (locale == "en" and CHINESE.search(name))
        or _NOT_IN_NAME.search(name)
        or any(pattern.search(plain) for pattern in (BANNED, _ADDRESS, _FIGURE, _SHOUTED))
    ):
        return ""
    return name
