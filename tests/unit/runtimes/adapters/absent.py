"""An adapter whose engine nobody can install."""


class Absent:
    name = "absent"
    supported = ("1", "2")
    pip = 'pip install "no-such-engine>=1,<2"'
    suffix = ".onnx"

    def missing(self):
        return self.pip

    def version(self):
        raise ImportError(self.name)

    def open(self, path, options):
        raise ImportError(self.name)


PLUGIN = Absent()
