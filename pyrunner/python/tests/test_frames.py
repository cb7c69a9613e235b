import os
import socket
import struct
import unittest

from wsgigate_runner import frames, watch

from . import GOLDEN, golden


class Golden(unittest.TestCase):
    """Both halves read and write these bytes."""

    def setUp(self):
        self.entries = {about["name"]: (about, data) for about, data in golden.entries()}

    def test_files_are_what_the_table_says(self):
        with open(os.path.join(GOLDEN, "golden.json"), encoding="ascii") as index:
            self.assertEqual(index.read(), golden.index(), "run python -m tests.golden")
        for about, data in self.entries.values():
            with open(os.path.join(GOLDEN, about["file"]), "rb") as file:
                self.assertEqual(file.read(), data, about["name"])

    def test_worker_writes_them(self):
        for name, (about, data) in self.entries.items():
            if about["from"] != "worker":
                continue
            fields = about["fields"]
            if "text" in fields:
                payload = fields["text"].encode()
            elif "data" in fields:
                payload = bytes.fromhex(fields["data"])
            elif "block" in fields:
                payload = fields["block"].encode("latin-1")
            elif "offset" in fields:
                payload = frames.FILE_RANGE.pack(fields["offset"], fields["count"])
            elif "size" in fields:
                payload = frames.READ_SIZE.pack(fields["size"])
            elif "files" in fields:
                payload = b"".join(watch._frames(about["request"], fields["files"]))[frames.HEAD.size :]
            else:
                payload = frames.HELLO_HEAD.pack(fields["version"], fields["pid"]) + fields["interpreter"].encode()
            with self.subTest(name):
                self.assertEqual(frames.frame(about["type"], about["flags"], about["request"], payload), data)
                if name in ("errors", "warn"):
                    self.assertEqual(frames.text_frames(about["type"], about["request"], fields["text"]), data)

    def test_worker_reads_them(self):
        for name, (about, data) in self.entries.items():
            if about["from"] != "gateway":
                continue
            with self.subTest(name):
                self.check_read(about, data)

    def check_read(self, about, data):
        with Pair() as (ours, channel):
            fields = about["fields"]
            if about["type"] == frames.REQUEST:
                expected = {k: tuple(v) if isinstance(v, list) else v for k, v in fields["environ"]}
                if about["flags"] & frames.CHANGES:
                    ours.sendall(self.entries["request"][1])
                    _, base, _ = channel.receive_request()
                    expected = {k: v for k, v in {**base, **expected}.items() if v is not None}
                ours.sendall(data)
                flags, environ, first = channel.receive_request()
                self.assertEqual(environ, expected)
                self.assertIs(type(environ), dict)
                self.assertEqual(flags, about["flags"] & frames.STREAMS)
                self.assertEqual(first.hex(), fields["body"])
                self.assertEqual(channel.current, about["request"])
                return
            ours.sendall(data)
            kind, flags, request, payload = channel.receive()
            self.assertEqual((kind, flags, request), (about["type"], about["flags"], about["request"]))
            if about["type"] == frames.INIT:
                self.assertEqual(frames.loads(payload), dict(fields["config"]))
            elif "data" in fields:
                self.assertEqual(bytes(payload).hex(), fields["data"])
            else:
                self.assertEqual(str(payload, "utf-8"), fields["text"])


class Pair:
    """A channel and the socket at its other end."""

    def __enter__(self):
        self.ours, theirs = socket.socketpair()
        self.channel = frames.Channel(theirs.detach())
        return self.ours, self.channel

    def __exit__(self, *exc):
        self.ours.close()
        self.channel.close()


class Receiving(unittest.TestCase):
    def stream(self):
        return b"".join(data for about, data in golden.entries() if about["from"] == "gateway")

    def collect(self, pieces):
        got = []
        with Pair() as (ours, channel):
            for piece in pieces:
                ours.sendall(piece)
                while True:
                    frame = channel.poll()
                    if frame is None:
                        break
                    got.append(frame[:3] + (bytes(frame[3]),))
        return got

    def test_any_split_gives_the_same_frames(self):
        stream = self.stream()
        whole = self.collect([stream])
        self.assertEqual(len(whole), sum(1 for about, _ in golden.entries() if about["from"] == "gateway"))
        self.assertEqual(self.collect(stream[i : i + 1] for i in range(len(stream))), whole)
        for step in (2, 3, 7, 11, 13, 100, 1000):
            self.assertEqual(self.collect(stream[i : i + step] for i in range(0, len(stream), step)), whole)

    def test_many_frames_pass_through_one_buffer(self):
        block = os.urandom(30000)
        with Pair() as (ours, channel):
            for n in range(1, 12):
                ours.sendall(
                    frames.frame(frames.BODY, 0, n, block[:n] * 1000) + frames.frame(frames.CANCEL, 0, n, b"x")
                )
                _, _, request, payload = channel.receive()
                self.assertEqual((request, bytes(payload)), (n, block[:n] * 1000))
                self.assertEqual(channel.receive()[:3], (frames.CANCEL, 0, n))

    def test_frame_longer_than_the_buffer(self):
        block = os.urandom(200 << 10)
        with Pair() as (ours, channel):
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            ours.sendall(frames.frame(frames.BODY, frames.LAST, 3, block))
            kind, flags, request, payload = channel.receive()
            self.assertEqual((kind, flags, request), (frames.BODY, frames.LAST, 3))
            self.assertEqual(bytes(payload), block)

    def test_frames_of_an_ended_request_are_dropped(self):
        env = golden.marshal_environ([["A", "b"]])
        request = struct.pack("<I", len(env)) + env
        with Pair() as (ours, channel):
            ours.sendall(
                frames.frame(frames.CANCEL, 0, 1, b"late")
                + frames.frame(frames.BODY, 0, 1, b"late")
                + frames.frame(frames.REQUEST, 0, 2, request)
            )
            self.assertEqual(channel.receive_request(), (0, {"A": "b"}, b""))
            self.assertEqual(channel.current, 2)

    def test_end_of_stream(self):
        with Pair() as (ours, channel):
            ours.shutdown(socket.SHUT_WR)
            self.assertIsNone(channel.receive_request())
            self.assertIsNone(channel.receive())
        with Pair() as (ours, channel):
            ours.sendall(b"\x02\x00")
            ours.shutdown(socket.SHUT_WR)
            self.assertIsNone(channel.receive_request())


class Sending(unittest.TestCase):
    def test_gateway_gone(self):
        with Pair() as (ours, channel):
            ours.close()
            with self.assertRaises(frames.GatewayGone):
                channel.send(b"x")
            with self.assertRaises(frames.GatewayGone):
                channel.send_long(b"x", b"y")
            with self.assertRaises(frames.GatewayGone):
                channel.send_end(b"x")

    def test_nothing_is_sent_for_another_request(self):
        with Pair() as (ours, channel):
            channel.current = 5
            self.assertFalse(channel.send_within(4, b"late"))
            self.assertTrue(channel.send_within(5, b"in time"))
            self.assertEqual(ours.recv(100), b"in time")

    def test_long_text_is_cut_between_characters(self):
        text = "\u20ac" * 30000 + "\udc80"
        data = frames.text_frames(frames.ERRORS, 7, text)
        out, at = "", 0
        while at < len(data):
            kind, _, length, request = frames.HEAD.unpack_from(data, at)
            self.assertEqual((kind, request), (frames.ERRORS, 7))
            self.assertLessEqual(length - 4, frames.MAX_TEXT)
            out += data[at + 12 : at + 8 + length].decode("utf-8")
            at += 8 + length
        self.assertEqual(out, "\u20ac" * 30000 + "\\udc80")

    def test_one_frame_takes_what_fits(self):
        data = frames.text_frame(frames.WARN, 0, 7, "\u20ac" * 30000)
        self.assertLessEqual(len(data) - 12, frames.MAX_TEXT)
        self.assertEqual(set(data[12:].decode("utf-8")), {"\u20ac"})


if __name__ == "__main__":
    unittest.main()
