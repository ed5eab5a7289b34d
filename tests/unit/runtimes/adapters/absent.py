"""An adapter whose engine nobody can install."""


class Absent:
    name = "absent"
    supported = ("1", "2")
    pip = 'pip install "no-such-engine>=1,<2"'

    def missing(self):
        return self.pip


PLUGIN = Absent()
