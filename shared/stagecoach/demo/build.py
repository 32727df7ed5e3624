"""Makes chat.jsonl, the demo chat set, from conversations.txt (written by hand) and the tables below (one row each).

A tiny model must be able to learn the set by heart, so that a run can prove itself: every first user message is
different, and every answer differs from all others within its first 40 characters. In a tool call, whose JSON always
begins alike, the sentence before it therefore names the value first ("Oslo: let me look.").

    python -m stagecoach.demo.build          writes chat.jsonl beside this file; a test compares the two
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stagecoach.errors import DataError

DISTINCT_CHARACTERS = 40
_FOLDER = Path(__file__).parent
_ROLES = {"S": "system", "U": "user", "A": "assistant", "R": "tool"}

Message = dict[str, Any]
Conversation = dict[str, Any]

#: name, symbol, atomic number, what it is used for, what is odd about it
_ELEMENTS = (
    ("Hydrogen", "H", 1, "fuel cells and the making of ammonia", "it makes up most of the Sun"),
    ("Helium", "He", 2, "balloons and the cooling of magnets", "it was seen in sunlight before it was found on Earth"),
    ("Lithium", "Li", 3, "batteries", "it is light enough to float on oil"),
    ("Carbon", "C", 6, "pencils, steel and diamonds", "it forms more compounds than any other"),
    ("Nitrogen", "N", 7, "fertiliser and cold storage", "it is most of every breath you take"),
    ("Oxygen", "O", 8, "breathing, welding and medicine", "as a liquid it is pale blue"),
    ("Neon", "Ne", 10, "glowing signs", "it reacts with nothing at all"),
    ("Sodium", "Na", 11, "street lamps and, with chlorine, salt", "it burns on water"),
    ("Aluminium", "Al", 13, "cans, foil and aircraft", "it once cost more than gold"),
    ("Silicon", "Si", 14, "chips and solar cells", "sand is full of it"),
    ("Phosphorus", "P", 15, "matches and fertiliser", "it was first won from urine"),
    ("Sulfur", "S", 16, "rubber and acids", "it burns with a blue flame"),
    ("Iron", "Fe", 26, "steel, bridges and rails", "the core of the Earth consists of it"),
    ("Copper", "Cu", 29, "wires and pipes", "it turns green in the rain"),
    ("Zinc", "Zn", 30, "coating steel against rust", "brass needs it"),
    ("Silver", "Ag", 47, "mirrors, coins and contacts", "no metal conducts better"),
    ("Tin", "Sn", 50, "solder and tin cans", "it cries when it is bent"),
    ("Iodine", "I", 53, "cleaning wounds", "it goes from solid to violet vapour"),
    ("Gold", "Au", 79, "jewellery and contacts", "a gram can be drawn to a wire of two kilometres"),
    ("Mercury", "Hg", 80, "old thermometers", "it is a liquid at room temperature"),
)

#: country, capital, currency, something to see
_COUNTRIES = (
    ("Norway", "Oslo", "the krone", "the fjords of the west coast"),
    ("Austria", "Vienna", "the euro", "the palace of Schönbrunn"),
    ("Hungary", "Budapest", "the forint", "the baths on the Danube"),
    ("Egypt", "Cairo", "the pound", "the pyramids of Giza"),
    ("Kenya", "Nairobi", "the shilling", "the herds of the Maasai Mara"),
    ("Japan", "Tokyo", "the yen", "the temples of Kyoto"),
    ("India", "New Delhi", "the rupee", "the Taj Mahal in Agra"),
    ("Canada", "Ottawa", "the dollar", "the falls of Niagara"),
    ("Mexico", "Mexico City", "the peso", "the ruins of Chichén Itzá"),
    ("Brazil", "Brasília", "the real", "the falls of Iguaçu"),
    ("Iceland", "Reykjavík", "the króna", "the geysers and black beaches"),
    ("Morocco", "Rabat", "the dirham", "the markets of Marrakesh"),
    ("Vietnam", "Hanoi", "the dong", "the bay of Ha Long"),
    ("Australia", "Canberra", "the dollar", "the rock Uluru"),
    ("Turkey", "Ankara", "the lira", "the rocks of Cappadocia"),
    ("Poland", "Warsaw", "the złoty", "the old town of Kraków"),
)

#: city, degrees Celsius, sky, advice
_WEATHER = (
    ("Paris", 18, "light rain", "take an umbrella"),
    ("Oslo", -3, "snow", "wear boots"),
    ("Cairo", 35, "clear sky", "drink enough"),
    ("Tokyo", 24, "clouds", "a light jacket will do"),
    ("Lima", 19, "fog", "drive slowly"),
    ("Dublin", 12, "showers", "keep your hood near"),
    ("Mumbai", 31, "heavy rain", "stay inside if you can"),
    ("Toronto", 2, "wind", "bring a scarf"),
    ("Sydney", 27, "sun", "use sun cream"),
    ("Rome", 22, "sun", "enjoy the piazza"),
    ("Berlin", 9, "drizzle", "a coat is enough"),
    ("Nairobi", 21, "clear sky", "it is perfect for a walk"),
    ("Seoul", 15, "haze", "close the windows"),
    ("Madrid", 33, "sun", "find some shade"),
    ("Chicago", -8, "snow", "mind the ice"),
    ("Lisbon", 20, "a sea breeze", "go to the shore"),
)

#: question, expression, result, unit of the answer
_SUMS = (
    ("How much are 17 tickets at 24 crowns?", "17*24", "408", "crowns for all the tickets"),
    ("What is 15 percent of 260?", "260*0.15", "39", "is what you asked for"),
    ("Seven crates of 144 eggs: how many eggs?", "7*144", "1008", "eggs in seven crates"),
    ("Split 1,250 coins among 8 riders.", "1250/8", "156.25", "coins for each rider"),
    ("What is 2 to the power of 16?", "2**16", "65536", "is two to the sixteenth"),
    ("A field of 85 by 62 metres: its area?", "85*62", "5270", "square metres of field"),
    ("How many minutes has a week?", "7*24*60", "10080", "minutes in one week"),
    ("Add 388, 275 and 91.", "388+275+91", "754", "is the sum of the three"),
    ("Subtract 768 from 2,000.", "2000-768", "1232", "remain"),
    ("A wall of 36 rows with 48 bricks?", "36*48", "1728", "bricks in the wall"),
    ("How many hours are 5,400 seconds?", "5400/3600", "1.5", "hours"),
    ("The square root of 1,369?", "1369**0.5", "37", "is the root"),
)

#: from, to, departure, arrival
_TRIPS = (
    ("Bath", "London", "06:15", "17:40"),
    ("York", "Leeds", "07:30", "10:05"),
    ("Lyon", "Geneva", "08:00", "19:20"),
    ("Vienna", "Linz", "05:45", "20:10"),
    ("Boston", "Albany", "09:10", "22:30"),
    ("Turin", "Milan", "06:50", "18:25"),
    ("Ghent", "Bruges", "10:20", "14:00"),
    ("Tucson", "Yuma", "04:30", "23:15"),
)

#: who, things at first, thing, change, number of boxes for the rest
_STORIES = (
    ("Mia", 12, "apples", 5, 17),
    ("Tom", 30, "marbles", 14, 4),
    ("Lena", 45, "stamps", 20, 5),
    ("Omar", 18, "shells", 6, 8),
    ("Ivy", 27, "buttons", 9, 6),
    ("Noah", 50, "cards", 22, 9),
    ("Zoe", 33, "pencils", 11, 4),
    ("Ali", 64, "dates", 16, 10),
    ("Eva", 21, "candles", 7, 2),
    ("Jan", 80, "nails", 35, 5),
    ("Rosa", 15, "lemons", 13, 7),
    ("Finn", 28, "pebbles", 8, 3),
    ("Nora", 72, "beads", 24, 6),
    ("Hugo", 36, "tickets", 18, 9),
)


def build_conversations() -> list[Conversation]:
    """Return all conversations, ``{"id", "messages"}`` each, in the order of the file.

    Raises:
        DataError: Two first user messages are equal, or two answers begin with the same 40 characters.
    """
    text = (_FOLDER / "conversations.txt").read_text(encoding="utf-8")
    conversations: list[Conversation] = []
    counts: dict[str, int] = {}
    for kind, messages in (*_written(text), *_from_tables()):
        counts[kind] = counts.get(kind, 0) + 1
        conversations.append({"id": f"{kind}-{counts[kind]:03d}", "messages": messages})
    check_distinct(conversations)
    return conversations


def chat_jsonl() -> bytes:
    """Return the bytes of chat.jsonl: one conversation a line, UTF-8, nothing escaped that need not be."""
    lines = (json.dumps(c, ensure_ascii=False, separators=(", ", ": ")) + "\n" for c in build_conversations())
    return "".join(lines).encode()


def rendered_answer(message: Message) -> str:
    """Return an assistant message's content followed by its tool calls, as far as distinctness is concerned."""
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls", ())]
    return "\n".join([message["content"], *calls])


def check_distinct(conversations: list[Conversation]) -> None:
    """Refuse a set that greedy decoding could not reproduce.

    Raises:
        DataError: Names the two conversations that begin alike, or whose answers do.
    """
    seen: dict[tuple[str, str], str] = {}
    for conversation in conversations:
        messages = conversation["messages"]
        first = next(message["content"] for message in messages if message["role"] == "user")
        answers = [rendered_answer(message) for message in messages if message["role"] == "assistant"]
        for key in [("first user message", first), *(("answer", a[:DISTINCT_CHARACTERS]) for a in answers)]:
            if key in seen:
                raise DataError(
                    f"{conversation['id']} and {seen[key]}: expected distinct texts, got the {key[0]} {key[1]!r} twice"
                )
            seen[key] = conversation["id"]


def _written(text: str) -> list[tuple[str, list[Message]]]:
    """Read conversations.txt; its first lines say how it is written."""
    found: list[tuple[str, list[Message]]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        tag, _, rest = line.partition(": ")
        if line.startswith("== "):
            found.append((line[3:], []))
        elif line.startswith("#") and not found:
            continue
        elif not found or not (found[-1][1] or tag in _ROLES):
            raise DataError(
                f"conversations.txt:{number}: expected '== kind' and a message before this line, got {line[:60]!r}"
            )
        elif tag in _ROLES and rest:
            found[-1][1].append({"role": _ROLES[tag], "content": rest})
        else:
            found[-1][1][-1]["content"] += "\n" + line
    return found


def _from_tables() -> list[tuple[str, list[Message]]]:
    return [
        *(("element", _element(number, *row)) for number, row in enumerate(_ELEMENTS)),
        *(("country", _country(number, *row)) for number, row in enumerate(_COUNTRIES)),
        *(("weather", _weather(number, *row)) for number, row in enumerate(_WEATHER)),
        *(("sum", _sum(number, *row)) for number, row in enumerate(_SUMS)),
        *(("trip", _trip(*row)) for row in _TRIPS),
        *(("story", _story(*row)) for row in _STORIES),
    ]


def _chat(*turns: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]


def _tool_turn(
    question: str, said: str, name: str, arguments: dict[str, Any], result: dict[str, Any], answer: str
) -> list[Message]:
    call_id = f"call_{name}"
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return [
        {"role": "user", "content": question},
        {
            "role": "assistant",
            "content": said,
            "tool_calls": [{"id": call_id, "type": "function", "function": function}],
        },
        {"role": "tool", "tool_call_id": call_id, "name": name, "content": json.dumps(result, ensure_ascii=False)},
        {"role": "assistant", "content": answer},
    ]


def _element(index: int, name: str, symbol: str, number: int, use: str, oddity: str) -> list[Message]:
    question = ("Tell me about {}.", "What is {}?", "What kind of element is {}?")[index % 3].format(name.lower())
    return _chat(
        question,
        f"{name} ({symbol}) is element number {number}.",
        "What is it used for?",
        f"{name} goes into {use}.",
        "Anything odd?",
        f"{symbol}: {oddity}.",
    )


def _country(index: int, name: str, capital: str, currency: str, sight: str) -> list[Message]:
    question = ("What is the capital of {}?", "Which city governs {}?")[index % 2].format(name)
    return _chat(
        question,
        f"{capital} is the capital of {name}.",
        "How do I pay there?",
        f"In {name} you pay with {currency}.",
        "And what should I see?",
        f"{name} is loved for {sight}.",
    )


def _weather(index: int, city: str, degrees: int, sky: str, advice: str) -> list[Message]:
    question = ("What is the weather in {}?", "How warm is it in {} now?", "I fly to {} today. What shall I wear?")[
        index % 3
    ]
    return _tool_turn(
        question.format(city),
        f"{city}: let me look.",
        "weather",
        {"city": city},
        {"celsius": degrees, "sky": sky},
        f"{city} has {degrees} °C and {sky}; {advice}.",
    )


def _sum(index: int, question: str, expression: str, result: str, unit: str) -> list[Message]:
    said = f"{expression}, one moment."
    messages = _tool_turn(
        question, said, "calculate", {"expression": expression}, {"result": result}, f"{result} {unit}."
    )
    if index % 2:
        return messages
    return [{"role": "system", "content": "Use the tool calculate for every sum."}, *messages]


def _trip(origin: str, to: str, departure: str, arrival: str) -> list[Message]:
    return [
        *_tool_turn(
            f"When does the coach from {origin} to {to} leave?",
            f"{origin} to {to}: I ask.",
            "timetable",
            {"from": origin, "to": to},
            {"leave": departure, "arrive": arrival},
            f"It leaves {origin} at {departure}.",
        ),
        *_chat("When is it there?", f"It reaches {to} at {arrival}."),
    ]


def _story(who: str, first: int, thing: str, change: int, boxes: int) -> list[Message]:
    rest = first - change
    return _chat(
        f"{who} has {first} {thing} and gives {change} away. How many are left?",
        f"{who} keeps {first} - {change} = {rest} {thing}.",
        f"Then {boxes} more come. How many now?",
        f"Now {who} has {rest} + {boxes} = {rest + boxes} {thing}.",
    )


if __name__ == "__main__":
    (_FOLDER / "chat.jsonl").write_bytes(chat_jsonl())
