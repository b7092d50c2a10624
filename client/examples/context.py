#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""client/examples/context.py - a whole book as a context, and one sentence in it.

Opens a context, appends a book with a sentence planted in its middle, and asks.
Prints what the model goes on with, and the blocks of the book that its landmarks
brought back for that: "found" if the sentence is in one of them. How often it is
depends on the model: one that was trained with landmarks finds what a window
has long lost. Run it again: the context is there, and only the question is read.

    context.py BOOK.txt [--endpoint EP] [--name NAME] [--sentence TEXT]
               [--question TEXT] [--k N] [--segment N] [--tokens N]
"""
import argparse
import sys

import zmq

from example import call, default_endpoint

SENTENCE = "The lost key of the lighthouse lies under the seventh stone."
QUESTION = "The lost key of the lighthouse lies under the"
PIECE = 16384  # characters of an append: a crash costs no more than one


def pieces(text):
    """Cut at blanks: tokens are made of each piece by itself."""
    while len(text) > PIECE:
        end = text.rfind(" ", 0, PIECE) + 1 or PIECE
        yield text[:end].rstrip(" ")
        text = text[end:]
    if text:
        yield text


def read(socket, args):
    """Append the book, if the context is new."""
    settings = {k: v for k, v in (("k", args.k), ("segment", args.segment))
                if v is not None}
    opened = call(socket, "context.open", name=args.name,
                  **({"settings": settings} if settings else {}))
    if opened["context"]["tokens"] > 0:
        return opened["context"]["tokens"]
    with open(args.book, encoding="utf-8") as f:
        book = f.read()
    middle = book.find(" ", len(book) // 2) + 1
    done = 0
    for text in [*pieces(book[:middle]), args.sentence,
                 *pieces(book[middle:])]:
        result = call(socket, "context.append", name=args.name, text=text,
                      at=done)
        done = result["position"]
        print(f"\r{done} tokens, {result['blocks']} blocks", end="",
              flush=True)
    print()
    return done


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("book")
    parser.add_argument("--endpoint", default=default_endpoint())
    parser.add_argument("--name", default="book")
    parser.add_argument("--sentence", default=SENTENCE)
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--k", type=int)
    parser.add_argument("--segment", type=int)
    parser.add_argument("--tokens", type=int, default=16)
    args = parser.parse_args()

    socket = zmq.Context.instance().socket(zmq.REQ)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 600000)
    socket.connect(args.endpoint)
    read(socket, args)
    result = call(socket, "context.generate", name=args.name,
                  text=args.question, max_tokens=args.tokens, temperature=0)
    print(f"{args.question} ->{result['text']!r}")
    found = False
    for block in result["used"]["blocks"]:
        # A sentence may lie across two blocks: half of it will do.
        half = args.sentence[:len(args.sentence) // 2]
        rest = args.sentence[len(args.sentence) // 2:]
        here = half in block["text"] or rest in block["text"]
        found = found or here
        text = " ".join(block["text"].split())
        print(f"{'*' if here else ' '} token {block['at']:>7}  "
              f"{block['hits']:>6} hits  {text[:48]}")
    print("found" if found else "not found")


if __name__ == "__main__":
    try:
        main()
    except zmq.Again:
        sys.exit("context: no daemon answers")
    except (RuntimeError, OSError) as error:
        sys.exit(f"context: {error}")
