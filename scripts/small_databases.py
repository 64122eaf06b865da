"""The three databases of `make_sqlite_database`: a library, a shop, a tram network, with questions and gold queries.

Prices are multiples of 25 cents, so that sums of them are exact in whatever order a query adds up.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

Rows = list[tuple[Any, ...]]


@dataclass(frozen=True)
class Column:
    """A column with the words that explain it."""

    name: str
    type: str
    description: str
    references: str = ""
    """``table.column`` of a foreign key."""


@dataclass(frozen=True)
class Table:
    """A table; its first column is the primary key."""

    name: str
    columns: tuple[Column, ...]
    rows: Rows


@dataclass(frozen=True)
class Question:
    """A question with its gold query."""

    text: str
    sql: str
    evidence: str = ""
    difficulty: str = "simple"


@dataclass(frozen=True)
class Database:
    """A database with questions about it."""

    name: str
    tables: tuple[Table, ...]
    questions: tuple[Question, ...]


def _date(rng: random.Random, first: int, last: int) -> str:
    return f"{rng.randint(first, last)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


# --- a library -----------------------------------------------------------------------------------------------------

COUNTRIES: Final = ("Norway", "Ireland", "Chile", "Kenya", "Japan", "Poland")
GENRES: Final = ("Crime", "Fantasy", "History", "Poetry", "Travel")


def library(rng: random.Random) -> Database:
    """Authors, books, members, loans."""
    first, last = (
        ("Ada", "Bo", "Carla", "Dag", "Ewa", "Finn", "Grace", "Hugo"),
        ("Abbe", "Byrne", "Cruz", "Doi", "Eide"),
    )
    names = [f"{a} {b}" for b in last for a in first]
    rng.shuffle(names)
    authors: Rows = [(i + 1, names[i], rng.choice(COUNTRIES), rng.randint(1920, 1990)) for i in range(24)]
    words = ("Salt", "Harbour", "Winter", "Letters", "Glass", "Orchard", "Signal", "Stone", "River", "Night")
    titles = [f"{a} and {b}" for a in words for b in words if a < b]
    rng.shuffle(titles)
    books: Rows = [
        (i + 1, titles[i], rng.randint(1, 24), rng.choice(GENRES), rng.randint(1950, 2020), rng.randint(90, 700))
        for i in range(45)
    ]
    members: Rows = [
        (
            i + 1,
            names[24 + i % 16] + " " + "JKLMNPRS"[i // 5],
            rng.choice(("adult", "student", "senior")),
            _date(rng, 2015, 2022),
        )
        for i in range(40)
    ]
    loans: Rows = []
    for i in range(260):
        back = None if rng.random() < 0.15 else rng.randint(1, 60)
        loans.append((i + 1, rng.randint(1, 45), rng.randint(1, 38), _date(rng, 2022, 2024), back))
    tables = (
        Table("authors", (
            Column("author_id", "integer", "author"), Column("name", "text", "full name of the author"),
            Column("country", "text", "country of birth"), Column("born", "integer", "year of birth"),
        ), authors),
        Table("books", (
            Column("book_id", "integer", "book"), Column("title", "text", "title"),
            Column("author_id", "integer", "who wrote it", "authors.author_id"), Column("genre", "text", "genre"),
            Column("year", "integer", "year of publication"), Column("pages", "integer", "number of pages"),
        ), books),
        Table("members", (
            Column("member_id", "integer", "member"), Column("name", "text", "full name of the member"),
            Column("kind", "text", "adult, student or senior"), Column("joined", "date", "day of joining, YYYY-MM-DD"),
        ), members),
        Table("loans", (
            Column("loan_id", "integer", "loan"), Column("book_id", "integer", "what was lent", "books.book_id"),
            Column("member_id", "integer", "who borrowed it", "members.member_id"),
            Column("lent_on", "date", "day of lending, YYYY-MM-DD"),
            Column("days_kept", "integer", "days until it came back; NULL while it is out"),
        ), loans),
    )  # fmt: skip
    return Database("library", tables, tuple(_library_questions()))


def _library_questions() -> Iterator[Question]:
    for country in COUNTRIES[:4]:
        yield Question(
            f"How many books were written by authors from {country}?",
            "SELECT COUNT(*) FROM books JOIN authors ON books.author_id = authors.author_id "
            f"WHERE authors.country = '{country}'",
        )
    for genre in GENRES:
        yield Question(
            f"What is the title of the longest {genre} book?",
            f"SELECT title FROM books WHERE genre = '{genre}' ORDER BY pages DESC LIMIT 1",
            "longest means most pages",
        )
    for genre in ("Fantasy", "History", "Travel"):
        yield Question(
            f"Which members have borrowed at least four {genre} books? List their names.",
            "SELECT members.name FROM members JOIN loans ON loans.member_id = members.member_id JOIN books ON "
            f"books.book_id = loans.book_id WHERE books.genre = '{genre}' GROUP BY members.member_id HAVING COUNT(*) >= 4",
            "the same book borrowed twice counts twice",
            "challenging",
        )
    for kind in ("adult", "student", "senior"):
        yield Question(
            f"What percentage of the loans of {kind} members are still out?",
            "SELECT CAST(SUM(loans.days_kept IS NULL) AS REAL) * 100 / COUNT(*) FROM loans JOIN members ON "
            f"members.member_id = loans.member_id WHERE members.kind = '{kind}'",
            "still out means days_kept is NULL; percentage = loans still out * 100 / all loans",
            "moderate",
        )
    for year in (2022, 2023):
        yield Question(
            f"How many different members borrowed something in {year}?",
            f"SELECT COUNT(DISTINCT member_id) FROM loans WHERE strftime('%Y', lent_on) = '{year}'",
        )
    for count in (10, 20):
        yield Question(
            f"List the titles of books that were kept for more than {count} days on average.",
            "SELECT books.title FROM books JOIN loans ON loans.book_id = books.book_id GROUP BY books.book_id "
            f"HAVING AVG(loans.days_kept) > {count}",
            "loans that are still out do not count",
            "moderate",
        )
    yield Question(
        "Which members have never borrowed a book? List their names.",
        "SELECT name FROM members WHERE member_id NOT IN (SELECT member_id FROM loans)",
    )
    yield Question(
        "Which author has the most loans of his or her books, and how many?",
        "SELECT authors.name, COUNT(*) FROM authors JOIN books ON books.author_id = authors.author_id JOIN loans ON "
        "loans.book_id = books.book_id GROUP BY authors.author_id ORDER BY COUNT(*) DESC, authors.name LIMIT 1",
        difficulty="moderate",
    )
    yield Question(
        "For each genre, what is the average number of pages of books published after 1990?",
        "SELECT genre, AVG(pages) FROM books WHERE year > 1990 GROUP BY genre",
    )


# --- a shop --------------------------------------------------------------------------------------------------------

CITIES: Final = ("Bergen", "Cork", "Gdynia", "Osaka", "Mombasa")
CATEGORIES: Final = ("Garden", "Kitchen", "Office", "Toys")


def shop(rng: random.Random) -> Database:
    """Customers, products, orders, order items."""
    customers: Rows = [
        (i + 1, f"Customer {chr(65 + i % 26)}{i // 26}", rng.choice(CITIES), rng.choice(("yes", "no")))
        for i in range(60)
    ]
    things = ("Lamp", "Kettle", "Stapler", "Kite", "Rake", "Bowl", "Folder", "Puzzle", "Shears", "Tray")
    colours = ("Red", "Blue", "Green", "Grey")
    products: Rows = [
        (
            i + 1,
            f"{colours[i % 4]} {things[i // 4]}",
            rng.choice(CATEGORIES),
            rng.randint(8, 360) / 4,
            rng.randint(0, 40),
        )
        for i in range(40)
    ]
    states = ("delivered", "delivered", "delivered", "returned", "open")
    orders: Rows = [(i + 1, rng.randint(1, 57), _date(rng, 2021, 2023), rng.choice(states)) for i in range(220)]
    items: Rows = []
    for order in range(1, 221):
        for product in rng.sample(range(1, 40), rng.randint(1, 4)):
            items.append((len(items) + 1, order, product, rng.randint(1, 5)))
    tables = (
        Table("customers", (
            Column("customer_id", "integer", "customer"), Column("name", "text", "name of the customer"),
            Column("city", "text", "city"), Column("newsletter", "text", "whether the newsletter is wanted: yes or no"),
        ), customers),
        Table("products", (
            Column("product_id", "integer", "product"), Column("product name", "text", "product name"),
            Column("category", "text", "category"), Column("price", "real", "price of one piece in euros"),
            Column("stock", "integer", "pieces in stock"),
        ), products),
        Table("orders", (
            Column("order_id", "integer", "order"), Column("customer_id", "integer", "who ordered", "customers.customer_id"),
            Column("ordered_on", "date", "day of the order, YYYY-MM-DD"),
            Column("state", "text", "delivered, returned or open"),
        ), orders),
        Table("order_items", (
            Column("item_id", "integer", "line of an order"), Column("order_id", "integer", "order", "orders.order_id"),
            Column("product_id", "integer", "what was ordered", "products.product_id"),
            Column("quantity", "integer", "number of pieces"),
        ), items),
    )  # fmt: skip
    return Database("shop", tables, tuple(_shop_questions()))


_REVENUE: Final = "revenue = quantity * price"
_JOINED: Final = "order_items JOIN products ON products.product_id = order_items.product_id"


def _shop_questions() -> Iterator[Question]:
    for city in CITIES:
        yield Question(
            f"How many orders did customers from {city} place?",
            f"SELECT COUNT(*) FROM orders JOIN customers USING (customer_id) WHERE customers.city = '{city}'",
        )
    for category in CATEGORIES:
        yield Question(
            f"What is the revenue of delivered orders in the category {category}?",
            f"SELECT SUM(order_items.quantity * products.price) FROM {_JOINED} JOIN orders ON orders.order_id = "
            f"order_items.order_id WHERE products.category = '{category}' AND orders.state = 'delivered'",
            _REVENUE,
            "moderate",
        )
    for category in CATEGORIES:
        yield Question(
            f"Which product of the category {category} is the most expensive, and what does it cost?",
            f"SELECT `product name`, price FROM products WHERE category = '{category}' ORDER BY price DESC LIMIT 1",
        )
    for city in CITIES[:3]:
        yield Question(
            f"List the names of customers from {city} who ordered more than three times.",
            f"SELECT customers.name FROM customers JOIN orders USING (customer_id) WHERE customers.city = '{city}' "
            "GROUP BY customers.customer_id HAVING COUNT(*) > 3",
            difficulty="moderate",
        )
    for year in (2021, 2022, 2023):
        yield Question(
            f"In {year}, what share of the orders was returned?",
            "SELECT AVG(CASE WHEN state = 'returned' THEN 1.0 ELSE 0.0 END) FROM orders "
            f"WHERE strftime('%Y', ordered_on) = '{year}'",
            "share = returned orders / all orders, between 0 and 1",
            "moderate",
        )
    yield Question(
        "Which products were never ordered? List the product names.",
        "SELECT `product name` FROM products WHERE product_id NOT IN (SELECT product_id FROM order_items)",
    )
    yield Question(
        "Which customer brought the highest revenue in total? Give name and revenue.",
        f"SELECT customers.name, SUM(order_items.quantity * products.price) AS revenue FROM {_JOINED} JOIN orders ON "
        "orders.order_id = order_items.order_id JOIN customers ON customers.customer_id = orders.customer_id "
        "GROUP BY customers.customer_id ORDER BY revenue DESC LIMIT 1",
        _REVENUE,
        "challenging",
    )
    yield Question(
        "Among customers who want the newsletter, in which city are the most?",
        "SELECT city FROM customers WHERE newsletter = 'yes' GROUP BY city ORDER BY COUNT(*) DESC, city LIMIT 1",
    )
    yield Question(
        "How many orders hold products of at least three different categories?",
        f"SELECT COUNT(*) FROM (SELECT order_items.order_id FROM {_JOINED} GROUP BY order_items.order_id "
        "HAVING COUNT(DISTINCT products.category) >= 3)",
        difficulty="challenging",
    )


# --- a tram network ------------------------------------------------------------------------------------------------

LINES: Final = ("Red", "Blue", "Green", "Yellow", "Violet")
DISTRICTS: Final = ("Centre", "Harbour", "North", "East")


def tram(rng: random.Random) -> Database:
    """Lines, stops, which line serves which stop, trips."""
    lines: Rows = [(i + 1, name, rng.randint(1950, 2015), rng.choice((0, 1))) for i, name in enumerate(LINES)]
    places = ("Market", "Mill", "Museum", "Park", "Station", "Tower", "University", "Bridge")
    stops: Rows = [
        (
            i + 1,
            f"{places[i % 8]} {('Street', 'Square', 'Gate', 'Hill')[i // 8]}",
            rng.choice(DISTRICTS),
            rng.choice((0, 1)),
        )
        for i in range(32)
    ]
    serves: Rows = []
    for line in range(1, 6):
        for order, stop in enumerate(rng.sample(range(1, 32), rng.randint(7, 12)), start=1):
            serves.append((len(serves) + 1, line, stop, order))
    trips: Rows = [
        (i + 1, rng.randint(1, 5), _date(rng, 2024, 2024), rng.randint(5, 220), max(0, round(rng.gauss(2, 4))))
        for i in range(400)
    ]
    tables = (
        Table("lines", (
            Column("line_id", "integer", "line"), Column("name", "text", "name of the line, a colour"),
            Column("opened", "integer", "year of opening"),
            Column("night_service", "integer", "1 when it runs at night, else 0"),
        ), lines),
        Table("stops", (
            Column("stop_id", "integer", "stop"), Column("name", "text", "name of the stop"),
            Column("district", "text", "district"), Column("step_free", "integer", "1 when there are no steps, else 0"),
        ), stops),
        Table("serves", (
            Column("serves_id", "integer", "pair of line and stop"), Column("line_id", "integer", "line", "lines.line_id"),
            Column("stop_id", "integer", "stop", "stops.stop_id"),
            Column("position", "integer", "place of the stop on the line, 1 = terminus"),
        ), serves),
        Table("trips", (
            Column("trip_id", "integer", "trip"), Column("line_id", "integer", "line", "lines.line_id"),
            Column("day", "date", "day, YYYY-MM-DD"), Column("passengers", "integer", "number of passengers"),
            Column("delay", "integer", "delay at the end in minutes"),
        ), trips),
    )  # fmt: skip
    return Database("tram", tables, tuple(_tram_questions()))


def _tram_questions() -> Iterator[Question]:
    for line in LINES:
        yield Question(
            f"List the names of the first three stops of the {line} line, in this order.",
            "SELECT stops.name FROM stops JOIN serves USING (stop_id) JOIN lines USING (line_id) "
            f"WHERE lines.name = '{line}' AND serves.position <= 3 ORDER BY serves.position",
        )
    for line in LINES:
        yield Question(
            f"What was the average delay of the {line} line on trips with more than 100 passengers?",
            "SELECT AVG(trips.delay) FROM trips JOIN lines USING (line_id) "
            f"WHERE lines.name = '{line}' AND trips.passengers > 100",
        )
    for district in DISTRICTS:
        yield Question(
            f"What percentage of the stops in the district {district} is step-free?",
            f"SELECT AVG(step_free) * 100.0 FROM stops WHERE district = '{district}'",
            "step-free means step_free = 1",
        )
    for month, name in (("01", "January"), ("06", "June"), ("12", "December")):
        yield Question(
            f"Which line carried the most passengers in {name}? Give its name and their number.",
            "SELECT lines.name, SUM(trips.passengers) AS total FROM trips JOIN lines USING (line_id) "
            f"WHERE strftime('%m', trips.day) = '{month}' GROUP BY lines.line_id ORDER BY total DESC LIMIT 1",
            difficulty="moderate",
        )
    for minutes in (5, 8):
        yield Question(
            f"For each line, how many trips were more than {minutes} minutes late? Give name and number, lines without such "
            "trips too.",
            "SELECT lines.name, COUNT(trips.trip_id) FROM lines LEFT JOIN trips ON trips.line_id = lines.line_id "
            f"AND trips.delay > {minutes} GROUP BY lines.line_id",
            difficulty="challenging",
        )
    yield Question(
        "At which stops can one change between lines? List their names.",
        "SELECT stops.name FROM stops JOIN serves USING (stop_id) GROUP BY stops.stop_id HAVING COUNT(*) > 1",
        "a stop where one can change is served by more than one line",
        "moderate",
    )
    yield Question(
        "Which stops are served by no line at all? List their names.",
        "SELECT name FROM stops WHERE stop_id NOT IN (SELECT stop_id FROM serves)",
    )
    yield Question(
        "Which line has the most stops?",
        "SELECT lines.name FROM lines JOIN serves USING (line_id) GROUP BY lines.line_id "
        "ORDER BY COUNT(*) DESC, lines.name LIMIT 1",
    )
