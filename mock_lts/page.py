"""A page for people: tapes, drives, cache and queues, refreshed every second from `/admin/state`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

# Everything that comes from outside is set by textContent, never as markup.
_HTML = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>mock_lts</title>
<style>
:root{--ink:#1d2733;--soft:#66758a;--line:#e2e7ee;--card:#fff;--back:#f4f6f9;--blue:#2f6fde;--amber:#d98a1f;--red:#c8402f}
@media(prefers-color-scheme:dark){:root{--ink:#e4eaf2;--soft:#8d9bb0;--line:#2a3442;--card:#19212c;--back:#10161e}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
header{display:flex;gap:1rem;align-items:baseline;padding:1rem 1.5rem;flex-wrap:wrap}
h1{font-size:1.2rem;margin:0} h2{font-size:.78rem;text-transform:uppercase;letter-spacing:.07em;color:var(--soft);margin:0 0 .7rem}
header span{color:var(--soft)}
main{display:grid;gap:1rem;padding:0 1.5rem 1.5rem;grid-template-columns:repeat(auto-fit,minmax(340px,1fr))}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:1rem;min-width:0}
.wide{grid-column:1/-1}
.row{display:grid;grid-template-columns:7rem 1fr auto;gap:.7rem;align-items:center;padding:.2rem 0}
.bar{height:.6rem;border-radius:.3rem;background:var(--line);overflow:hidden;display:flex}
.bar i{background:var(--blue);height:100%} .bar i.pin{background:var(--amber)} .bar i.res{background:var(--soft)}
.num{color:var(--soft);font-variant-numeric:tabular-nums;white-space:nowrap}
.tag{border-radius:1rem;padding:0 .6rem;border:1px solid var(--line);color:var(--soft)}
.tag.busy{border-color:var(--blue);color:var(--blue)} .tag.bad{border-color:var(--red);color:var(--red)}
table{width:100%;border-collapse:collapse} td,th{text-align:left;padding:.2rem .5rem .2rem 0;border-bottom:1px solid var(--line)}
th{color:var(--soft);font-weight:500} td:first-child{word-break:break-all}
</style></head><body>
<header><h1>mock_lts</h1><span id="sum"></span><span id="mode"></span></header>
<main>
<section><h2>Cartridges</h2><div id="tapes"></div></section>
<section><h2>Drives</h2><div id="drives"></div></section>
<section><h2>Disk cache</h2><div id="cache"></div></section>
<section><h2>Queues</h2><div id="queues"></div></section>
<section class="wide"><h2>Files</h2><table><thead><tr><th>path</th><th>size</th><th>where</th><th>tape</th><th>pins</th></tr></thead>
<tbody id="files"></tbody></table></section>
<section class="wide"><h2>Faults in force</h2><div id="faults"></div></section>
</main>
<script>
const $=id=>document.getElementById(id)
const el=(tag,cls,text)=>{const e=document.createElement(tag);if(cls)e.className=cls;if(text!==undefined)e.textContent=text;return e}
const size=n=>{const u=['B','kB','MB','GB','TB'];let i=0;while(n>=1000&&i<4){n/=1000;i++}return (i&&n<100?n.toFixed(1):Math.round(n))+' '+u[i]}
const bar=parts=>{const b=el('div','bar');for(const[share,cls]of parts){const i=el('i',cls);i.style.width=100*share+'%';b.append(i)}return b}
const row=(name,middle,right)=>{const r=el('div','row');r.append(el('span','',name),middle,el('span','num',right));return r}
const tag=(text,cls)=>{const d=el('div');d.append(el('span','tag '+cls,text));return d}
const none=text=>[el('span','num',text)]
function show(s){
 const c=s.counters,cap=s.cache.capacity_bytes
 $('sum').textContent=`${s.files_total} files · ${size(c.bytes_received)} in · ${size(c.bytes_sent)} out · ${c.migrations} migrated · ${c.recalls} recalled · ${c.mounts} mounts`
 $('mode').textContent=(s.worm?'write-once · ':'')+`1 s here = ${s.time_factor?Math.round(1/s.time_factor)+' s of library time':'no time at all'}`
 $('tapes').replaceChildren(...s.tapes.map(t=>row(t.name,bar([[t.used_bytes/t.capacity_bytes,'']]),(t.offline?'offline · ':t.drive!==null?'in drive '+t.drive+' · ':'')+size(t.used_bytes))))
 $('drives').replaceChildren(...s.drives.map(d=>row('drive '+d.number,tag(d.phase,d.phase==='offline'?'bad':['empty','idle'].includes(d.phase)?'':'busy'),d.tape||'')))
 const plain=Math.max(0,s.cache.used_bytes-s.cache.pinned_bytes)
 $('cache').replaceChildren(
  row('filled',bar([[s.cache.pinned_bytes/cap,'pin'],[plain/cap,''],[s.cache.reserved_bytes/cap,'res']]),size(s.cache.used_bytes)+' of '+size(cap)),
  row('pinned',el('span'),size(s.cache.pinned_bytes)),row('reserved',el('span'),size(s.cache.reserved_bytes)),row('uploads open',el('span'),s.uploads.length))
 const q=Object.entries(s.recall_queues)
 $('queues').replaceChildren(row('to tape',el('span'),`${s.migration_queue.files} files, ${size(s.migration_queue.bytes)}`),
  ...q.map(([t,paths])=>row('recall '+t,el('span','',paths[0]||''),paths.length)),row('stage requests',el('span'),s.stage_requests.open+' open'))
 $('files').replaceChildren(...s.files.slice(-50).reverse().map(f=>{const r=el('tr');for(const v of[f.path,size(f.size),f.locality,f.tape||'',f.pins||''])r.append(el('td','',v));return r}))
 $('faults').replaceChildren(...(s.faults.length?s.faults.map(f=>el('div','',JSON.stringify(f))):none('none')))
}
async function tick(){try{const r=await fetch('admin/state');if(r.ok)show(await r.json());else $('sum').textContent='answer '+r.status}
 catch(e){$('sum').textContent='not reachable'}setTimeout(tick,1000)}
tick()
</script></body></html>
"""  # noqa: E501 - markup


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"


async def page(_: Request) -> Response:
    """The page; it holds no data itself."""
    return HTMLResponse(_HTML, headers={"Content-Security-Policy": _POLICY})
