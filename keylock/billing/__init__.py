"""From units to amounts of money: price lists with tiers and dates, and invoices of a month that equal the ledger."""

from keylock.billing.invoices import Invoice, Item, make_invoices
from keylock.billing.price_lists import PriceList, Prices, Tier, parse_prices

__all__ = ["Invoice", "Item", "PriceList", "Prices", "Tier", "make_invoices", "parse_prices"]
