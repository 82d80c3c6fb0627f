"""Pages as text for a terminal."""

from typing import Any

from deploy.io.pages import page_text
from stream.items.catalog import Catalog
from tests.harness.shop import item


def test_a_page_is_printed_with_titles_in_its_own_language() -> None:
    catalog = Catalog("zh")
    catalog.apply([item("a", title={"en-US": "Brass Lamp", "zh-CN": "黄铜台灯"})])
    shown = {"position": 1, "score": 0.5, "item_id": "a", "reason": {"code": "NEW"}}
    page: dict[str, Any] = {
        "user_key": "u1", "version": 1, "serving": {"mode": "full"}, "generated_at": "", "trigger": {"event_id": "e"},
        "slots": [{"slot": "fresh", "title": "New in the shop", "title_source": "template", "items": [shown]}],
    }  # fmt: skip
    assert "Brass Lamp" in page_text(page | {"locale": "en"}, catalog)
    assert "黄铜台灯" in page_text(page, catalog), "pages of earlier workers have no locale"
