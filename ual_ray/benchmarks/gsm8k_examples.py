"""Five worked examples in GSM8K's format, written for this project. Increase the benchmark's version when they change."""

from __future__ import annotations

EXAMPLES: tuple[tuple[str, str], ...] = (
    (
        "A baker fills 6 trays with 12 rolls each and sells 50 rolls. How many rolls are left?",
        "The baker makes 6 * 12 = 72 rolls.\nAfter selling 50 there are 72 - 50 = 22 rolls left.\n#### 22",
    ),
    (
        "Nora reads 18 pages a day. Her book has 270 pages, and she has read for 9 days. How many more days does she need?",
        "In 9 days Nora has read 9 * 18 = 162 pages.\nThere are 270 - 162 = 108 pages left.\n"
        "At 18 pages a day that takes 108 / 18 = 6 days.\n#### 6",
    ),
    (
        "A ticket for the ferry costs $14, and children pay half. What do 2 adults and 3 children pay?",
        "A child pays 14 / 2 = $7.\nThe adults pay 2 * 14 = $28.\nThe children pay 3 * 7 = $21.\n"
        "Together they pay 28 + 21 = $49.\n#### 49",
    ),
    (
        "A tank holds 1,500 litres. A pump fills 40% of it in the first hour, and 250 litres in the second. "
        "How many litres are still missing?",
        "In the first hour the pump fills 1500 * 0.4 = 600 litres.\nAfter the second hour there are 600 + 250 = 850 litres.\n"
        "So 1500 - 850 = 650 litres are missing.\n#### 650",
    ),
    (
        "Ben is 4 years older than twice Ida's age. Together they are 31 years old. How old is Ben?",
        "If Ida is x years old, Ben is 2x + 4.\nTogether they are 3x + 4 = 31, so 3x = 27 and x = 9.\n"
        "Ben is 2 * 9 + 4 = 22 years old.\n#### 22",
    ),
)
