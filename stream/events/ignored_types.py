"""Types of events that are skipped: an analytics stream carries many that say nothing about a homepage."""

from collections.abc import Iterable

from stream.name_patterns import NamePatterns

# What GA4 collects by itself (web and apps), and its recommended events, without those that have a meaning here.
# https://support.google.com/analytics/answer/9234069 and .../9267735
GA4_TYPES = frozenset(
    (
        "ad_click", "ad_exposure", "ad_impression", "ad_query", "ad_reward", "adunit_exposure", "app_clear_data",
        "app_exception", "app_remove", "app_store_refund", "app_store_subscription_cancel",
        "app_store_subscription_convert", "app_store_subscription_renew", "app_update", "click",
        "dynamic_link_app_open", "dynamic_link_app_update", "dynamic_link_first_open", "error", "file_download",
        "firebase_campaign", "firebase_in_app_message_action", "firebase_in_app_message_dismiss",
        "firebase_in_app_message_impression", "first_open", "first_visit", "form_start", "form_submit",
        "in_app_purchase", "notification_dismiss", "notification_foreground", "notification_open",
        "notification_receive", "notification_send", "os_update", "page_view", "screen_view", "scroll",
        "session_start", "user_engagement", "video_complete", "video_progress", "video_start", "view_search_results",
        "add_payment_info", "add_shipping_info", "add_to_wishlist", "begin_checkout", "campaign_details",
        "close_convert_lead", "close_unconvert_lead", "disqualify_lead", "earn_virtual_currency", "generate_lead",
        "join_group", "level_end", "level_start", "level_up", "login", "post_score", "qualify_lead", "select_content",
        "select_promotion", "share", "sign_up", "spend_virtual_currency", "tutorial_begin", "tutorial_complete",
        "unlock_achievement", "view_cart", "view_item_list", "view_promotion", "working_lead",
    )
)  # fmt: skip
GA4 = "ga4"  # stands for GA4_TYPES


class IgnoredTypes(NamePatterns):
    """Patterns of type names, in which `ga4` stands for GA4_TYPES.

    Only types without a meaning are looked up here, so that no entry can make a worker ignore a purchase.
    """

    def __init__(self, entries: Iterable[str]) -> None:
        names = set(entries)
        super().__init__((names - {GA4}) | GA4_TYPES if GA4 in names else names)


NONE_IGNORED = IgnoredTypes(())
