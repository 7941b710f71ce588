"""What stands above a page: tags that a preview is made of, buttons that lead to its source."""

import re


def preview_tags(pagename: str, context: dict, values: dict[str, str]) -> str:
    "What a preview of a link to the page shows. Its picture has a whole address with `doc_host`."
    site = (values["doc_host"] + values["doc_baseurl"]).rstrip("/") if values["doc_host"] else ""
    picture = "_static/preview.png"
    title = re.sub(r"<[^>]+>", "", context.get("title") or values["title"])
    tags = {
        "og:type": "website",
        "og:site_name": values["title"],
        "og:title": title,
        "og:description": values["description"],
        "og:image": f"{site}/{picture}" if site else context["pathto"](picture, 1),
        "og:image:alt": "A drawn scene, and the same scene with its latent region marked",
    }
    if site: tags["og:url"] = f"{site}/{pagename}.html"
    lines = [f'<meta property="{name}" content="{escaped(text)}">' for name, text in tags.items()]
    lines.append('<meta name="twitter:card" content="summary_large_image">')
    return "\n".join(lines)


def escaped(text: str) -> str:
    return text.replace("&amp;", "&").replace("&", "&amp;").replace('"', "&quot;")


def repository_buttons(source: str, values: dict[str, str]) -> list[dict]:
    "Buttons of a page made of a file of the repository; none while `git_url` is empty."
    url, branch = values["git_url"].rstrip("/"), values["branch"]
    if not url: return []

    def button(address, words, icon):
        label = words.lower().replace(" ", "-")
        return dict(type="link", url=address, tooltip=words, text="", icon=icon, label=label)

    buttons = [button(url, "Source repository", "fas fa-code-branch")]
    if not source: return buttons
    buttons.append(button(f"{url}/edit/{branch}/{source}", "Edit this page", "fas fa-pencil-alt"))
    if url.startswith("https://github.com/") and source.endswith(".ipynb"):
        colab = url.replace("https://github.com", "https://colab.research.google.com/github")
        notebook = f"{colab}/blob/{branch}/{source}"
        buttons.append(button(notebook, "Launch in Colab", "fas fa-rocket"))
    return buttons
