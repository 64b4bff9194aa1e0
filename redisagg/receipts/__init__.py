"""Receipts of submitted tasks, and the subscription by which they learn of outcomes."""

from redisagg.receipts.receipt import AsyncReceipt, Receipt

__all__ = ["AsyncReceipt", "Receipt"]
