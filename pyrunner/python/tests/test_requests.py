"""Requests as packets: the socket of their own, the base environ, what came too late."""

import os
import random
import socket
import struct
import unittest

from wsgigate_runner import frames
from wsgigate_runner.slot import Slot

from .gateway import DEADLINE
from .golden import marshal_environ

CHANGES, REMOVES, MORE, FILTER = frames.CHANGES, frames.REMOVES, frames.MORE, frames.FILTER


def request(number, environ, flags=0, body=b""):
    """A REQUEST frame."""
    data = marshal_environ(environ.items())
    return frames.frame(frames.REQUEST, flags, number, struct.pack("<I", len(data)) + data + body)


class Slotted:
    """A channel with both sockets, and the gateway's ends of them."""

    def __enter__(self):
        self.stream, theirs = socket.socketpair()
        self.packets, queue = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self.stream, self.packets):
            each.settimeout(DEADLINE)
        self.channel = frames.Channel(theirs.detach())
        self.channel.take_requests_from(queue.detach())
        return self

    def __exit__(self, *exc):
        self.stream.close()
        self.packets.close()
        self.channel.close()

    def ask(self, number, environ, flags=0, body=b""):
        self.packets.sendall(request(number, environ, flags, body))
        return self.channel.receive_request()


class Packets(unittest.TestCase):
    def test_each_is_a_request(self):
        with Slotted() as slot:
            for n in range(1, 6):
                slot.packets.sendall(request(n, {"A": str(n)}, n & 3, b"body" * n))
            for n in range(1, 6):
                self.assertEqual(slot.channel.receive_request(), (n & 3, {"A": str(n)}, b"body" * n))
                self.assertEqual(slot.channel.current, n)

    def test_longest(self):
        with Slotted() as slot:
            slot.packets.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            body = os.urandom(frames.MAX_PACKET - len(request(1, {"A": "b"})))
            self.assertEqual(slot.ask(1, {"A": "b"}, 0, body), (0, {"A": "b"}, body))

    def test_bare_head_announces_one_on_the_stream(self):
        with Slotted() as slot:
            slot.ask(1, {"A": "b", "B": "c"})
            slot.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            value = "x" * (150 << 10)
            for n, flags, sent, expected in (
                (2, CHANGES | REMOVES, {"L": value, "A": None}, {"B": "c", "L": value}),
                (3, MORE, {"A": value}, {"A": value}),
                (4, CHANGES, {"B": value}, {"A": value, "B": value}),
            ):
                slot.stream.sendall(frames.frame(frames.CANCEL, 0, n - 1, b"late"))
                slot.stream.sendall(request(n, sent, flags, b"body"))
                slot.packets.sendall(frames.frame(frames.REQUEST, 0, 0))
                self.assertEqual(slot.channel.receive_request(), (flags & MORE, expected, b"body"))
                self.assertEqual(slot.channel.current, n)
            self.assertEqual(slot.ask(5, {"A": "z"}, CHANGES), (0, {"A": "z"}, b""))

    def test_end(self):
        with Slotted() as slot:
            slot.packets.sendall(request(1, {"A": "b"}))
            slot.packets.shutdown(socket.SHUT_WR)
            self.assertEqual(slot.channel.receive_request(), (0, {"A": "b"}, b""))
            self.assertIsNone(slot.channel.receive_request())
        with Slotted() as slot:
            slot.packets.sendall(frames.frame(frames.REQUEST, 0, 0))
            slot.stream.shutdown(socket.SHUT_WR)
            self.assertIsNone(slot.channel.receive_request())

    def test_gateway_gone(self):
        with Slotted() as slot:
            slot.packets.close()
            self.assertIsNone(slot.channel.receive_request())

    def test_descriptors_are_closed_and_not_inherited(self):
        before = os.listdir("/proc/self/fd")
        with Slotted() as slot:
            inheritable = [os.get_inheritable(each.fileno()) for each in (slot.channel._packets, slot.channel._sock)]
        self.assertEqual(inheritable, [False, False])
        self.assertEqual(os.listdir("/proc/self/fd"), before)


class Base(unittest.TestCase):
    def test_same(self):
        with Slotted() as slot:
            _, first, _ = slot.ask(1, {"A": "b"})
            first["A"] = "changed by the application"
            first["wsgi.input"] = None
            for n in range(2, 5):
                flags, again, body = slot.ask(n, {}, CHANGES | FILTER, b"body")
                self.assertEqual((flags, again, body), (FILTER, {"A": "b"}, b"body"))
                again.clear()

    def test_changes_and_removes(self):
        with Slotted() as slot:
            slot.ask(1, {"A": "1", "B": "2", "C": "3"})
            self.assertEqual(
                slot.ask(2, {"B": "\xff", "D": "4"}, CHANGES)[1], {"A": "1", "B": "\xff", "C": "3", "D": "4"}
            )
            self.assertEqual(slot.ask(3, {"A": None, "C": "x", "B": None}, CHANGES | REMOVES)[1], {"C": "x"})
            self.assertEqual(slot.ask(4, {}, CHANGES)[1], {"A": "1", "B": "2", "C": "3"})

    def test_whole_environ_replaces_it(self):
        with Slotted() as slot:
            slot.ask(1, {"A": "1"})
            slot.ask(2, {"B": "2"})
            self.assertEqual(slot.ask(3, {"C": "3"}, CHANGES)[1], {"B": "2", "C": "3"})

    def test_secrets_are_not_kept(self):
        with Slotted() as slot:
            secrets = dict.fromkeys(frames.SECRETS, "secret")
            self.assertEqual(slot.ask(1, {"A": "1", **secrets})[1], {"A": "1", **secrets})
            self.assertNotIn("secret", slot.channel._base.values())
            self.assertEqual(slot.ask(2, {}, CHANGES)[1], {"A": "1"})
            self.assertEqual(slot.ask(3, secrets, CHANGES)[1], {"A": "1", **secrets})
            self.assertNotIn("secret", slot.channel._base.values())
            self.assertEqual(slot.ask(4, {"B": "2"}, CHANGES)[1], {"A": "1", "B": "2"})

    def test_any_sequence(self):
        chance = random.Random(7)
        names = ["NAME_%d" % n for n in range(12)] + list(frames.SECRETS)
        base = {}
        with Slotted() as slot:
            for number in range(1, 400):
                wanted = {name: chance.choice("abc\xe9") for name in chance.sample(names, chance.randrange(len(names)))}
                if number == 1 or chance.random() < 0.1:
                    base = {name: value for name, value in wanted.items() if name not in frames.SECRETS}
                    sent, flags = wanted, 0
                else:
                    sent = {name: value for name, value in wanted.items() if base.get(name) != value}
                    gone = {name: None for name in base if name not in wanted}
                    sent.update(gone)
                    flags = CHANGES | (REMOVES if gone else 0)
                self.assertEqual(slot.ask(number, sent, flags)[1], wanted)


class TooLate(unittest.TestCase):
    def test_frames_of_ended_requests_do_not_fill_the_stream(self):
        with Slotted() as slot:
            cancel = b"client closed the connection"
            for number in range(1, 2000):
                slot.ask(number, {}, 0)
                slot.stream.sendall(frames.frame(frames.CANCEL, 0, number, cancel))

    def test_a_cancel_that_was_faster_than_its_request_stays(self):
        with Slotted() as slot:
            for number in range(1, 3 * frames.TIDY_EVERY):
                slot.stream.sendall(frames.frame(frames.CANCEL, 0, number - 1, b"late"))
                slot.stream.sendall(frames.frame(frames.CANCEL, 0, number, b"fast"))
                slot.ask(number, {})
                got = slot.channel.poll()
                while got[2] != number:
                    got = slot.channel.poll()
                self.assertEqual((got[0], bytes(got[3])), (frames.CANCEL, b"fast"))

    def test_a_cancel_is_seen_behind_those_that_came_too_late(self):
        seen = []

        def app(environ, start_response):
            start_response("200 OK", [])
            for n in range(10):
                seen.append(n)
                yield b"x"

        with Slotted() as slot:
            for number in range(1, 40):
                slot.stream.sendall(frames.frame(frames.CANCEL, 0, number, b"late"))
            slot.stream.sendall(frames.frame(frames.CANCEL, 0, 40, b"gone"))
            slot.packets.sendall(request(40, {"REQUEST_METHOD": "GET"}))
            slot.packets.shutdown(socket.SHUT_WR)
            Slot(slot.channel, app).run()
            self.assertEqual(seen, [0, 1])
            answer = slot.stream.recv(1 << 16)
            self.assertTrue(answer.endswith(frames.frame(frames.END, frames.END_CANCELLED, 40, b"gone")), answer)


if __name__ == "__main__":
    unittest.main()
