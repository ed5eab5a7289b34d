def render(report, store):
    return ""
