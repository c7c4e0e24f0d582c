"""What a reader sees of a page, found with html.parser, and texts that would break a careless page."""

from html.parser import HTMLParser

HOSTILE = {
    "script": "<script>alert(1)</script> & </p></section> <img src=x onerror=alert(2)>",
    "quotes": '"double" \'single\' `back` =" onmouseover="alert(1)" x=\'',
    "markup": "]]> --> <!-- <![CDATA[ {{ 7*7 }} {% raw %} ${x} [bold]x[/bold] [/] \\[red]",
    "entities": "&amp; &lt;b&gt; &#0; &notanentity; &",
    "controls": "nul \x00 bell \x07 escape \x1b[31mred\x1b[0m \x1b]0;title\x07 delete \x7f c1 \x9b31m",
    "returns": "one\r\ntwo\rthree\nfour\tfive",
    "bidi": "abc \u202e desrever \u202c \u2066 isolate \u2069 \u200f \u061c end",
    "rtl": "שלום עולם مرحبا بالعالم 123",
    "emoji": "flag 🏴󠁧󠁢󠁥󠁮󠁧󠁿 family 👨‍👩‍👧‍👦 skin 👍🏽",
    "marks": "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢ é नि กำ",
    "long": "x" * 10_000 + " end",
    "surrogate": "half \ud83d of a pair",
    "separators": "line\u2028paragraph\u2029bom \ufeff next\x85line",
    "chinese": "我喜欢咖啡和奶酪，火山爆发了，机场关闭了。",
}


class Page(HTMLParser):
    """Text of each element of a class or tag, and every tag with its attributes."""

    VOID = ("meta", "br", "input", "link", "img", "hr", "source", "base")

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[tuple[str, dict, list[str]]] = []
        self._open: list[tuple[str, dict, list[str]]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in self.VOID:
            self._open.append((tag, attributes, []))

    def handle_startendtag(self, tag, attrs):
        raise AssertionError(f"<{tag}/>")

    def handle_endtag(self, tag):
        opened = self._open.pop()
        assert opened[0] == tag, f"</{tag}> closes <{opened[0]}>"
        self.texts.append(opened)

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data}")

    def text(self, *, tag=None, style=None) -> list[str]:
        """Text of every element of this tag and class, in the order of their ends."""
        return [
            "".join(text)
            for name, attributes, text in self.texts
            if tag in (None, name)
            and (style is None or style in (attributes.get("class") or "").split())
        ]
